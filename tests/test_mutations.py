"""Files with some of their bytes or values changed: refused in one line, or loaded and usable.

Nothing but ``ValueError`` and ``OSError`` may end a call, with the name of the file in one line;
no call may take 2 seconds or 200 MB. ``FLOWTURBO_MUTATIONS`` is how many files are tried in all.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import time
import warnings
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.compiled.aot_archive import archive_digest, read_manifest
from flowturbo.models.checkpoint import convert, save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.tokenizer import Tokenizer
from flowturbo.refiner import VelocityRefiner, save_refiner

TRIED = int(os.environ.get("FLOWTURBO_MUTATIONS", "2000"))
HOSTILE = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, -1e300, 10**30, 10**400, 2**31, 1e-300,
    20_000, "", "x", "1", "model", "refiner", "\0", "\ud800", "a\nb", "x" * 5000, "../..",
    "\x1b[31m",
    [], {}, [None], [[]], [1, 2], [2.0, 1.0], ["a"], ["a", 3], {"a": 1}, {"": ""}, [[[[1]]]],
]  # fmt: skip
TEXTS = [
    b"", b"{", b"}", b"[" * 200, b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"\0", b"\xff",
    b"\xef\xbb\xbf", b"9" * 5000, b'"a": 1, "a": 2,', b"\n\n", b"//", b"1" + b"0" * 320,
]  # fmt: skip


@contextmanager
def bounded():
    """Fails what takes too much memory or time."""
    limits, pages = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
    if pages.exists():
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 200 * 2**20, limits[1]))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - start < 2


def loaded(load, path, *names):
    """What ``load`` gives, or None if it refuses in one line with the name of the file."""
    try:
        with bounded():
            return load(path)
    except (ValueError, OSError) as e:
        said = str(e)
    assert any(name in said for name in (str(path), *names)), said
    assert "\n" not in said
    assert len(said) < 1500
    return None


def used(use):
    """``use`` called; it may refuse too, by then without the name of the file."""
    with bounded(), suppress(ValueError, OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use()


# -- mutations ----------------------------------------------------------------------------------


def _places(value, parent=None, key=None):
    """(container, key) of every value in JSON."""
    found = [] if parent is None else [(parent, key)]
    if isinstance(value, (dict, list)):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            found += _places(v, value, k)
    return found


def changed_values(text: str, dice: random.Random) -> bytes:
    """JSON with one to three of its values changed, dropped, or put elsewhere."""
    made = json.loads(text)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        places = _places(made)
        parent, key = dice.choice(places)
        act = dice.randrange(8)
        if act == 0:
            del parent[key]
        elif act == 1 and isinstance(parent, dict):
            parent[dice.choice(["a", "kind", "labels", "plan", "", "config"])] = parent.pop(key)
        elif act == 2:
            other, where = dice.choice(places)
            with suppress(KeyError, IndexError):
                parent[key] = json.loads(json.dumps(other[where]))
        elif act == 3 and isinstance(parent[key], (int, float)):
            with suppress(OverflowError):
                parent[key] = parent[key] * dice.choice([-1, 0, 2, 1000, 1e10, 0.999])
        elif act == 4 and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = copy.deepcopy(dice.choice(HOSTILE))
        if not made:
            break
    return json.dumps(made).encode()


def changed_bytes(data: bytes, dice: random.Random) -> bytes:
    """Bytes with one to three bits flipped, spans cut, repeated or written over, or cut short."""
    made = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 3])):
        at, act = dice.randrange(len(made) + 1), dice.randrange(6)
        at = min(at, dice.choice([at, 300]))  # the beginning often
        span = slice(at, at + dice.choice([1, 4, 30]))
        if act == 0 and at < len(made):
            made[at] ^= 1 << dice.randrange(8)
        elif act == 1:
            del made[span]
        elif act == 2:
            made[at:at] = made[span]
        elif act == 3:
            made[span] = bytes(dice.randrange(256) for _ in made[span])
        elif act == 4:
            del made[at:]
        else:
            made[at:at] = dice.choice(TEXTS)
    return bytes(made)


def changed_json(text: str, dice: random.Random) -> bytes:
    return (
        changed_values(text, dice) if dice.random() < 0.75 else changed_bytes(text.encode(), dice)
    )


# -- what is changed, and how it is used --------------------------------------------------------


def _normal(module):
    for p in module.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    return module


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Small files of every kind."""
    home = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    size = dict(size=4, channels=1, patch=2, width=8, depth=1, heads=2)
    tokenizer = Tokenizer(["apple", "red", "##s"], 4, {"\U0001f34e": "red apple"})
    text = {
        "kind": "text", "styles": ["noto"], "groups": {"Food": ["apple", "red apple"]},
        "tokenizer": tokenizer.to_json(),
    }  # fmt: skip
    common = {
        "description": "Small.", "defaults": {"guidance": 2.0, "plan": "E2"}, "path": "linear",
        "codec": {"kind": "pixels"}, "data": {"licence": "CC0"}, "training": {"steps": 3},
    }  # fmt: skip
    words = _normal(SiT(SiTConfig(**size, vocabulary=4, text_length=4)))
    classes = _normal(SiT(SiTConfig(**size, classes=2)))
    save_folder(home / "text", words, {**common, "condition": text})
    labels = {"kind": "class", "labels": ["a", "b"]}
    save_folder(home / "class", classes, {**common, "condition": labels})
    torch.save({"ema": classes.state_dict(), "step": 3}, home / "sit.pt")
    model = ft.load(home / "class")
    save_refiner(home / "class", _normal(VelocityRefiner.from_model(model, (1.0, 4.0))), model)
    small = _normal(VelocityRefiner.small((1, 4, 4), (1.0, 4.0), width=4, depth=1, classes=3))
    save_refiner(home / "text", small, ft.load(home / "text"))
    error = {"rmse": 0.1, "median": 0.05}
    info = {
        "fingerprint": "x",
        "guidance": [1.0, 2.0],
        "error": error,
        "baseline": {"name": "E3", **error},
    }
    plan = ft.Plan.blocks("H1R1P1", shipped=True).with_info(info)
    (home / "class" / "plans").mkdir()
    plan.save(home / "class" / "plans" / "fitted.json")
    use_model(model, home)  # what the first call alone imports and allocates
    return home


@contextmanager
def replaced(path, content):
    """``path`` with other content for a while."""
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


def use_model(model, folder):
    names = [str(name) for name in model.names[:1]] or [""]
    for style in model.styles[:1]:
        names = [model.styled(name, style) for name in names]
    model.random_condition(2, torch.Generator().manual_seed(0))
    pictures = ft.generate(model, names, plan="E1")
    assert len(pictures) == 1
    assert model.fingerprint
    save_folder(folder / "again", model.network, model.card)
    assert ft.load(folder / "again").card["config"] == model.network.config.to_dict()


def use_card(folder, dice):
    arguments = dice.choice([[], [], [], [], ["--group", "food"], ["--json"]])
    with pytest.raises(SystemExit) as end:
        main(["models", str(folder), *arguments])
    assert end.value.code in (0, 2)


def use_refiner(refiner, folder):
    x, cond = torch.randn(2, *_shape(refiner)), torch.tensor([0, 1])
    history = [(0.0, x), (0.25, 2 * x)]
    guidance = {} if refiner.kind == "paper" else {"guidance": refiner.guidance_range[0]}
    assert refiner(x, 0.5, cond, history, **guidance).shape == x.shape
    save_refiner(folder / "again", refiner)
    assert ft.load_refiner(folder / "again").kind == refiner.kind


def _shape(refiner):
    config = refiner.network.config
    return config["shape"] if isinstance(config, dict) else refiner.network.shape


def use_plan(plan, folder):
    assert repr(plan) in f"<Plan {str(plan).splitlines()[0]}>"
    again = ft.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest
    refiner = lambda x, t, cond, history: history[-1][1]
    moved = ft.sample(plan, lambda x, t, cond: 0 * x, torch.ones(2, 1), refiner=refiner)
    assert torch.equal(moved, torch.ones(2, 1))
    middle = float(plan.times[0] + plan.times[-1]) / 2
    assert len(plan.restrict(middle)) > 0
    assert len(plan.rows) == len(plan)


def use_tokenizer(tokenizer):
    tokenizer.encode(["red apples", "\U0001f34e" * 100, "", "x" * 1000])


def use_sampler(sampler):
    out = sampler(torch.randn(2, *sampler.shapes.shape), torch.tensor([0, 1]))
    assert out.shape == (2, *sampler.shapes.shape)


def try_card(home, dice):
    folder = home / dice.choice(["text", "class"])
    content = changed_json((folder / "card.json").read_text(), dice)
    with replaced(folder / "card.json", content):
        if model := loaded(ft.load, folder):
            used(lambda: use_model(model, home))
            used(lambda: use_card(folder, dice))


def try_weights(home, dice):
    folder = home / dice.choice(["text", "class"])
    content = changed_bytes((folder / "model.safetensors").read_bytes(), dice)
    with replaced(folder / "model.safetensors", content):
        if model := loaded(ft.load, folder):
            used(lambda: use_model(model, home))


def try_refiner(home, dice):
    path = home / dice.choice(["text", "class"]) / "refiner.json"
    if dice.random() < 0.2:
        path = path.with_suffix(".safetensors")
        content = changed_bytes(path.read_bytes(), dice)
    else:
        content = changed_json(path.read_text(), dice)
    with replaced(path, content):
        if refiner := loaded(ft.load_refiner, path.parent):
            used(lambda: use_refiner(refiner, home))


def try_plan(home, dice):
    path = home / "class" / "plans" / "fitted.json"
    with replaced(path, changed_json(path.read_text(), dice)):
        if plan := loaded(ft.Plan.load, path):
            used(lambda: use_plan(plan, home))
        if plan and dice.random() < 0.1:
            used(lambda: use_card(path.parent.parent, dice))


def try_tokenizer(home, dice):
    card = json.loads((home / "text" / "card.json").read_text())
    text = json.dumps(card["condition"]["tokenizer"])
    with suppress(UnicodeError):
        made = json.loads(changed_values(text, dice))
        if tokenizer := loaded(Tokenizer.from_json, made, "tokenizer: "):
            used(lambda: use_tokenizer(tokenizer))


def try_pickle(home, dice):
    path, out = home / "sit.pt", home / "converted"
    config = SiTConfig.from_dict(json.loads((home / "class" / "card.json").read_text())["config"])
    with replaced(path, changed_bytes(path.read_bytes(), dice)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded(lambda path: convert(path, out, config), path, str(out))
    if out.exists():
        used(lambda: use_model(ft.load(out), home))


def try_manifest(home, dice):
    path = home / "sampler.pt2"
    manifest = {
        "format": 1, "flowturbo": "0.1.0", "digest": "",
        "made_for": dict.fromkeys(("torch", "system", "device", "kind", "instructions"), "cpu"),
        "model": {"name": "class", "fingerprint": None}, "refiner": None,
        "plan": json.loads(ft.Plan.parse("E2").to_json()), "dtype": None,
        "state": {"shape": [1, 4, 4], "dtype": "torch.float32"}, "batch": [1, 2],
        "cond": {"dtype": "torch.int64", "shape": []}, "null": [2], "guidance": 2.0,
    }  # fmt: skip
    content = changed_json(json.dumps(manifest), dice)
    with suppress(ValueError, AttributeError, TypeError):
        made = json.loads(content)
        content = json.dumps({**made, "digest": archive_digest(made, [])}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/extra/flowturbo.json", content)
    if dice.random() < 0.2:
        path.write_bytes(changed_bytes(path.read_bytes(), dice))
    if loaded(read_manifest, path) is None:
        return
    model = ft.load(home / "class")
    assert loaded(ft.load_compiled, path) is None  # there are no libraries
    with suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = ft.load_compiled(path, fallback=model)
        used(lambda: use_sampler(fast))


SHARES = {
    try_card: 0.25, try_weights: 0.1, try_refiner: 0.2, try_plan: 0.25, try_tokenizer: 0.05,
    try_pickle: 0.05, try_manifest: 0.1,
}  # fmt: skip


@pytest.mark.parametrize("attempt", SHARES, ids=lambda attempt: attempt.__name__)
def test_a_mutated_file_is_refused_or_works(attempt, home, capsys):
    @settings(
        max_examples=max(1, round(TRIED * SHARES[attempt])),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**40))
    def check(seed):
        attempt(home, random.Random(seed))

    check()
    capsys.readouterr()


def test_all_shares_make_a_whole():
    assert sum(SHARES.values()) == pytest.approx(1)

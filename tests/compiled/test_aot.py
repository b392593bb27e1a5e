"""Exported samplers: the same images in a fresh process without a compiler; what is refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import pytest
import torch

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.compiled.aot_archive import archive_digest, read_manifest
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import VelocityRefiner, save_refiner

PLAN = "H1R1"
FRESH = """
import sys, torch
import flowturbo as ft
fast = ft.load_compiled(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
torch.save(fast(x, torch.tensor([0, 1, 1])), sys.argv[3])
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of one block with its refiner."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=1, heads=2, classes=2))
    refiner = VelocityRefiner.from_model(network, (1.0, 4.0))
    for p in (*network.parameters(), *refiner.parameters()):
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    condition = {"kind": "class", "labels": ["0", "1"]}
    save_folder(folder, network, {"condition": condition, "defaults": {"guidance": 2.0}})
    save_refiner(folder, refiner, ft.load(folder))
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tiny.pt2"
    with pytest.raises(SystemExit) as end:
        main(["export", "-m", str(folder), "--plan", PLAN, "--batch", "2", "-o", str(path)])
    assert not end.value.code
    return path


def _loop(folder, x, cond, guidance=2.0):
    model = ft.load(folder)
    refiner = ft.load_refiner(folder, model)
    return ft.sample(PLAN, model, x, cond, guidance=guidance, refiner=refiner)


def test_the_same_images_in_a_fresh_process_without_a_compiler(exported, folder, tmp_path):
    x, cond = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 1])
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", FRESH, exported, tmp_path / "x.pt", tmp_path / "out.pt"]
    env = {**os.environ, "CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(list(map(str, command)), env=env, check=True)
    there = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(there, ft.load_compiled(exported)(x, cond))
    torch.testing.assert_close(there, _loop(folder, x, cond), rtol=1e-5, atol=1e-5)


def test_a_full_disk_is_one_error_and_leaves_nothing(folder, tmp_path, monkeypatch):
    """The archive does not fit; torch's own writer would abort the process."""
    library = tmp_path / "rows.wrapper.so"
    library.write_bytes(os.urandom(100_000))
    monkeypatch.setattr("torch._inductor.aot_compile", lambda *_, **__: [str(library)])
    limits, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "out" / "tiny.pt2"
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*tiny\.pt2: File too large"):
            ft.export(out, ft.load(folder), "E1", batch=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(out.parent) == []


def test_it_takes_any_scale_and_negative_but_no_other_shape(exported, folder):
    fast, x, cond = ft.load_compiled(exported), torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    torch.testing.assert_close(fast(x, cond, guidance=3.5), _loop(folder, x, cond, 3.5))
    away = fast(x, cond, guidance=3.5, negative=torch.tensor([1]))
    assert not torch.equal(away, fast(x, cond, guidance=3.5))
    with pytest.raises(ValueError, match="this refiner was made for 1 to 4"):
        fast(x, cond, guidance=5.0)
    with pytest.raises(ValueError, match=r"compiled for states \(1, 4, 4\), batch \(2,\)"):
        fast(torch.randn(2, 1, 8, 8), cond)
    with pytest.raises(ValueError, match=r"cond=.*: holds 7, and must be 0 to \d"):
        fast(x, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"negative=.*: holds -1, and must be 0 to \d"):
        fast(x, cond, negative=torch.tensor([-1]))
    assert fast(x[:0], cond[:0]).shape == (0, 1, 4, 4)


def test_the_manifest_describes_the_sampler(exported, folder):
    manifest = read_manifest(exported)
    model = ft.load(folder)
    assert manifest["model"]["fingerprint"] == model.fingerprint
    assert manifest["made_for"]["torch"] == torch.__version__
    assert (manifest["batch"], manifest["guidance"]) == ([2], 2.0)
    assert ft.load_compiled(exported).plan == ft.Plan.parse(PLAN)


@pytest.fixture
def elsewhere(exported, tmp_path):
    """The exported with other contents of its manifest."""

    def changed(edit=None, digest=True, **made_for):
        path = tmp_path / "elsewhere.pt2"
        with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                if name.endswith("flowturbo.json"):
                    manifest = json.loads(old.read(name))
                    manifest["made_for"] |= made_for
                    if edit:
                        edit(manifest)
                    if digest and "digest" in manifest:
                        manifest["digest"] = archive_digest(manifest, new.infolist())
                    new.writestr(name, json.dumps(manifest))
        return path

    return changed


def test_where_it_was_not_made_for_it_is_refused_with_the_reason(elsewhere):
    for key, value in (("torch", "2.0.0"), ("kind", "another chip"), ("system", "Plan 9")):
        with pytest.raises(ValueError, match=f"made for {key} {value}, this is .*export it here"):
            ft.load_compiled(elsewhere(**{key: value}))
    with pytest.raises(ValueError, match=r"made for instructions avx9000, not here"):
        ft.load_compiled(elsewhere(instructions="avx9000"))
    with pytest.raises(ValueError, match=r"made for (device )?cuda"):
        ft.load_compiled(elsewhere(device="cuda"), device="cpu")


def test_it_falls_back_only_when_asked(elsewhere, folder):
    path, model = elsewhere(torch="2.0.0"), ft.load(folder)
    refiner = ft.load_refiner(folder, model)
    x, cond = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 1])
    with pytest.warns(UserWarning, match=r"made for torch 2.0.0, .*; the plan is run uncompiled"):
        slow = ft.load_compiled(path, fallback=model, refiner=refiner)
    torch.testing.assert_close(slow(x, cond), _loop(folder, x, cond))
    torch.nn.init.ones_(model.network.final_layer.linear.weight)
    with pytest.raises(ValueError, match="the fallback has other weights"):
        ft.load_compiled(path, fallback=model, refiner=refiner)


EDITS = {
    "another version": (lambda m: m.update(format=9), "format: 9: this library reads version 1"),
    "no machine": (lambda m: m.pop("made_for"), "made_for: is missing"),
    "torch": (lambda m: m["made_for"].update(torch=2), "made_for.torch: 2: .*string"),
    "instructions": (lambda m: m["made_for"].update(instructions=[]), "made_for.instructions"),
    "model": (lambda m: m.update(model=3.5), "model: 3.5: must be an object"),
    "refiner": (lambda m: m.update(refiner="x"), "refiner: 'x': must be an object"),
    "range": (lambda m: m["refiner"].update(guidance_range=[1]), "refiner.guidance_range"),
    "plan": (lambda m: m["plan"].update(times=[0, "1"]), "times.1: '1'"),
    "plan, weights": (lambda m: m["plan"].pop("weights"), "weights: is missing"),
    "dtype": (lambda m: m.update(dtype="os.system"), "dtype: 'os.system'"),
    "state": (lambda m: m["state"].update(shape=[1, 4.5, 4]), "state.shape.1: 4.5"),
    "vast": (lambda m: m["state"].update(shape=[2**20, 2**20]), "at most 268435456 numbers"),
    "negative": (lambda m: m["cond"].update(shape=[-1]), "cond.shape.0: -1"),
    "batch": (lambda m: m.update(batch=[]), "batch: a list of 0"),
    "batch, order": (lambda m: m.update(batch=[2, 1]), "must ascend"),
    "null": (lambda m: m.update(null="x"), "null: 'x': must be a list"),
    "null, ragged": (lambda m: m.update(null=[[1], [1, 2]]), "null: "),
    "null, shape": (lambda m: m.update(null=[1, 2]), r"null of shape \(2,\), cond of \(1,\)"),
    "guidance": (lambda m: m.update(guidance=None), "must be there together"),
    "no digest": (lambda m: m.pop("digest"), "digest: is missing; export it again"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_manifest_is_checked_before_anything_is_loaded(elsewhere, kind):
    edit, message = EDITS[kind]
    with pytest.raises(ValueError, match=rf"elsewhere.pt2: .*{message}") as e:
        ft.load_compiled(elsewhere(edit))
    assert "\n" not in str(e.value)


def test_a_manifest_that_was_edited_does_not_pass_for_that_of_the_libraries(elsewhere):
    edit = lambda m: m["state"].update(shape=[1, 800, 800])
    with pytest.raises(ValueError, match="not that of these libraries; export it again"):
        ft.load_compiled(elsewhere(edit, digest=False))


def test_a_flipped_byte_in_a_library_is_noticed(exported, tmp_path):
    data = bytearray(exported.read_bytes())
    data[data.index(b"\x7fELF") + 5000] ^= 1
    (tmp_path / "a.pt2").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.pt2: .*\.so is damaged"):
        ft.load_compiled(tmp_path / "a.pt2")


def test_nothing_in_it_is_unpickled(exported, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if not name.endswith("flowturbo.json"):
                new.writestr(name, old.read(name))
                continue
            for planted in ("data.pkl", "data/weights/weight_0.pt", "data/constants/x.pt"):
                new.writestr(f"{name.partition('/')[0]}/{planted}", pickle.dumps(Evil()))
            manifest = json.loads(old.read(name))
            manifest["digest"] = archive_digest(manifest, new.infolist())
            new.writestr(name, json.dumps(manifest))
    fast = ft.load_compiled(path)
    assert fast(torch.randn(2, 1, 4, 4), torch.tensor([0, 1])).isfinite().all()
    assert not (tmp_path / "ran").exists()
    (tmp_path / "b.pt2").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="not a sampler that this library exported"):
        ft.load_compiled(tmp_path / "b.pt2")
    assert not (tmp_path / "ran").exists()


ARCHIVES = {
    "compressed": lambda z: z.writestr("a/b", bytes(10**6), zipfile.ZIP_DEFLATED),
    "elsewhere": lambda z: z.writestr("a/../../b", b""),
    "absolute": lambda z: z.writestr("/b", b""),
    "no manifest": lambda z: z.writestr("a/b", b""),
    "two manifests": lambda z: [z.writestr(f"{a}/extra/flowturbo.json", b"{}") for a in "ab"],
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_other_archives_are_refused(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        ARCHIVES[kind](archive)
    with pytest.raises(ValueError, match=r"a\.pt2: .*not a sampler that this library exported"):
        ft.load_compiled(tmp_path / "a.pt2")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.pt2")
    with pytest.raises(OSError, match=r"cannot read .*a\.pt2: not a regular file"):
        ft.load_compiled(tmp_path / "a.pt2")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"a\.pt2: damaged .*; not a sampler that this lib"):
        ft.load_compiled(tmp_path / "a.pt2")
    with pytest.raises(OSError, match="missing"):
        ft.load_compiled(tmp_path / "missing.pt2")
    net = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=1, heads=2, classes=2))
    with pytest.raises(ValueError, match=r"is written as \.pt2"):
        ft.export(tmp_path / "a.so", net, "E1")
    field = lambda x, t, cond: -x
    with pytest.raises(ValueError, match="only a tensor"):
        ft.export(tmp_path / "a.pt2", field, "E1", shape=(2,), cond={"ids": torch.zeros(1)})


def test_command_line_refuses(tmp_path, capsys):
    for arguments, message in (
        (["-o", "a.so"], "written as .pt2"),
        (["--batch", "0,2"], "--batch '0,2'"),
        (["--plan", "X9"], "'X9'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["export", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err

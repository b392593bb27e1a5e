"""`flowturbo.evaluate`: what it measures, that it goes on where it stopped, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fields import Reuse
from PIL import Image

import flowturbo as ft
from flowturbo.evaluate import evaluation, features, image_sets
from flowturbo.evaluate.compare import compare
from flowturbo.evaluate.evaluation import evaluate
from flowturbo.evaluate.frechet import frechet_distance
from flowturbo.evaluate.records import read_evaluation
from flowturbo.evaluate.report import evaluations
from flowturbo.files import exclusive
from flowturbo.tuning.reference import error, fine


def pooled(images):
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


pooled.probabilities = lambda features: features.softmax(1)
FEW = dict(num_images=24, batch=10, steps=8, repeats=0, resamples=10, features=pooled)


@pytest.fixture(scope="module")
def words(text_model):
    return ft.load(text_model)


@pytest.fixture(scope="module")
def record(words):
    return evaluate(words, "AB2:3", **FEW)


def test_trajectory_errors_and_distances_follow_from_the_images(words, record):
    cond = words.random_condition(24, torch.Generator().manual_seed(0))
    x0 = ft.noise.draw(range(24), words.shape)
    ends = [ft.sample(p, words, x0, cond, guidance=2.0) for p in ("AB2:3", fine(8))]
    each = error(*ends)
    assert record["trajectory"]["rmse"] == pytest.approx(float(each.square().mean().sqrt()), 1e-4)
    assert record["trajectory"]["median"] == pytest.approx(float(np.median(each)), 1e-4)
    low, high = record["trajectory"]["rmse_95"]
    assert low < record["trajectory"]["rmse"] < high
    plan, exact = (pooled(words.decode(x)) for x in ends)
    far = (plan - exact).norm(dim=1)
    assert record["perceptual"]["median"] == pytest.approx(float(np.median(far)), rel=1e-3)
    assert record["perceptual"]["rmse"] < record["perceptual"]["random_pairs"]
    assert record["frechet"]["to_reference"] == pytest.approx(
        frechet_distance(plan, exact), rel=1e-3
    )
    here, there = torch.randperm(24, generator=torch.Generator().manual_seed(0)).split(12)
    to = frechet_distance(plan[here], exact[there])
    assert record["frechet"]["plan"] == pytest.approx(to, rel=1e-3)
    assert record["frechet"]["images"] == record["frechet"]["target_images"] == 12
    assert record["inception_score"]["plan"]["mean"] >= 1


def test_the_record_has_its_conditions(words, record):
    found = record["conditions"]
    assert found["fingerprint"] == words.fingerprint
    assert found["digest"] == ft.Plan.parse("AB2:3").digest
    assert (found["guidance"], found["seeds"]) == (2.0, [0, 23])
    assert found["versions"]["torch"] == torch.__version__
    assert record["evaluations"] == {"model": 3, "conditional": 0, "refiner": 0}
    assert record["passes"] == 6  # guided
    assert record["reference"]["evaluations"] == fine(8).nfe["model"] == 17
    assert record["reference"]["passes"] == 34
    assert 0 < record["reference"]["error"]["rmse"] < record["trajectory"]["rmse"]
    network = evaluate(words, "E1", **FEW | {"features": None})
    assert network["flops"] < record["flops"] <= 3 * network["flops"]  # prompts are embedded once
    parts = {"conditions", "evaluations", "passes", "flops", "reference", "trajectory"}
    assert set(network) == parts
    assert record == json.loads(json.dumps(record))


def test_the_reference_solution_has_no_error(words):
    found = evaluate(words, fine(8), **FEW)
    assert found["trajectory"]["rmse"] == found["perceptual"]["rmse"] == 0
    assert found["frechet"]["relative"] == pytest.approx(0, abs=1e-9)
    assert found["frechet"]["relative_95"] == pytest.approx([0, 0], abs=1e-9)
    for part in ("inception_score", "precision", "recall", "agreement"):
        assert found[part]["plan"] == found[part]["reference"]


def test_agreement_is_high_where_prompts_decide(words):
    """A field that goes to its prompt's own level, but for noise, and one that forgets it."""

    class Levels(torch.nn.Module):
        forgets = False

        def forward(self, x, t, cond=None):
            level = torch.linspace(-0.8, 0.8, 20)[cond[:, 0] % 20].reshape(-1, 1, 1, 1)
            goal = 0 * level if self.forgets else level
            return 0.999 * (goal - x) / (1 - 0.999 * t)

    model = ft.Model(Levels().eval(), words.card)
    model.network.shape = words.shape
    model.network.register_parameter("one", torch.nn.Parameter(torch.zeros(1)))
    names = ["red apple", "tiger", "octopus", "pizza"]
    few = FEW | {"prompts": names, "guidance": 1.0}
    assert len({int(i) % 20 for i in words.condition(names)[:, 0]}) == 4
    found = evaluate(model, "E4", **few)["agreement"]
    assert found["plan"]["share"] == found["reference"]["share"] == 1
    assert (found["prompts"], found["images"], found["chance"]) == (4, 24, 0.25)
    assert evaluate(model, "E4", **few, agreement=2)["agreement"]["images"] == 12
    model.network.forgets = True
    assert evaluate(model, "E4", **few)["agreement"]["plan"]["share"] < 0.7
    assert "agreement" not in evaluate(model, "E4", **few, agreement=0)


@pytest.mark.parametrize("calls", [2, 4, 7])
def test_an_interrupted_evaluation_goes_on_without_repeats(words, tmp_path, monkeypatch, calls):
    drawn, stop = [], [None]
    sample = image_sets.sample

    def spy(plan, model, x, cond=None, **options):
        if len(x) > 1:  # a single image is generated to count operations
            if stop[0] is not None and len(drawn) == stop[0]:
                raise KeyboardInterrupt
            drawn.append((plan.name, ft.noise.digest(x)))
        return sample(plan, model, x, cond, **options)

    monkeypatch.setattr(image_sets, "sample", spy)
    whole = evaluate(words, "E2", cache_dir=tmp_path / "whole", **FEW)
    once = list(drawn)
    drawn.clear()
    stop[0] = calls
    with pytest.raises(KeyboardInterrupt):
        evaluate(words, "E2", cache_dir=tmp_path / "again", **FEW)
    stop[0] = None
    assert evaluate(words, "E2", cache_dir=tmp_path / "again", **FEW) == whole
    assert drawn == once
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(files) > 8
    assert files == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_plans_share_reference_images(words, tmp_path, monkeypatch):
    evaluate(words, "E2", cache_dir=tmp_path, **FEW)
    names = []
    sample = image_sets.sample
    spy = lambda plan, *rest, **options: (names.append(plan.name), sample(plan, *rest, **options))[
        1
    ]
    monkeypatch.setattr(image_sets, "sample", spy)
    shared = evaluate(words, "AB2:3", cache_dir=tmp_path, **FEW)
    assert set(names) == {"AB2:3"}
    assert shared == evaluate(words, "AB2:3", **FEW)
    with pytest.raises(ValueError, match="seed=0 there, 1 now"):
        evaluate(words, "E2", cache_dir=tmp_path, seed=1, **FEW)


def test_a_refiner_is_counted_and_kept_apart(words, tmp_path):
    few = FEW | {"features": None, "cache_dir": tmp_path}
    refiner = Reuse()
    found = evaluate(words, "H1R1", refiner=refiner, **few)
    assert found["evaluations"] == {"model": 2, "conditional": 0, "refiner": 2}
    half = lambda x, t, cond, history: history[-1][1] / 2
    other = evaluate(words, "H1R1", refiner=half, **few)
    assert other["trajectory"] == evaluate(words, "H1R1", refiner=half, **few)["trajectory"]
    assert other["trajectory"] != found["trajectory"]
    assert (
        other["trajectory"]
        == evaluate(words, "H1R1", refiner=half, **FEW | {"features": None})["trajectory"]
    )


def test_real_images_as_images_or_features(words, record, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (15, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    for i, image in enumerate(images):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:02d}.png")
    real = pooled(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    np.savez(tmp_path / "features.npz", features=real.numpy())
    paths = [tmp_path / n for n in ("images.npz", "folder", "features.npz")]
    found = [evaluate(words, "AB2:3", real_images=p, **FEW) for p in paths]
    for one in found:
        assert one["frechet"]["plan"] == pytest.approx(found[0]["frechet"]["plan"], rel=1e-4)
        assert one["precision"] == found[0]["precision"]
        assert one["frechet"]["to_reference"] == record["frechet"]["to_reference"]
    assert (found[0]["frechet"]["images"], found[0]["frechet"]["target_images"]) == (24, 15)
    assert found[0]["conditions"]["real_images"]["images"] == 15


def test_official_scores_of_both(words, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (15, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    seen = []

    def official_scores(images, real, *, batch, device):
        seen.append((images, real))
        return {"fid": 1.0}

    monkeypatch.setattr(evaluation, "official_scores", official_scores)
    monkeypatch.setattr(features, "check_installed", lambda: None)
    few = FEW | {"features": None}
    found = evaluate(words, "E2", real_images=tmp_path / "images.npz", fid=True, **few)
    assert found["official"] == {"plan": {"fid": 1.0}, "reference": {"fid": 1.0}}
    assert [(p.shape, p.dtype, len(r)) for p, r in seen] == [((24, 3, 8, 8), torch.uint8, 15)] * 2


def test_with_efficientnet_and_time(words):
    few = FEW | {"features": "effnet", "num_images": 10, "agreement": 2, "resamples": 0}
    found = evaluate(words, "E1", **few | {"repeats": 2})
    assert found["conditions"]["features"] == "EfficientNet-Lite0"
    assert found["latency"]["ms"]["least"] > 0
    assert found["inception_score"]["plan"]["mean"] >= 1
    assert "relative" not in found["frechet"]
    assert set(found["frechet"]) == {"to_reference", "images", "target_images", "plan", "reference"}


def test_table(words, record):
    other = evaluate(words, "E2", **FEW)
    made, seen, scores = evaluations([other, record])
    assert [*made.columns[0].cells][-1] == "reference"
    assert len(made.rows) == len(seen.rows) == len(scores.rows) == 3
    assert [c.header for c in seen.columns[1:3]] == ["perceptual", "relative increase of FD"]
    (alone,) = evaluations([evaluate(words, "E1", **FEW | {"features": None})])
    assert len(alone.rows) == 2
    assert [c.header for c in alone.columns] == [
        "plan", "evaluations", "passes", "GFLOPs", "error", "median",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"guidance=2\.0 and 3\.0"):
        evaluations([record, evaluate(words, "E2", **FEW, guidance=3.0)])
    with pytest.raises(ValueError, match="give at least one"):
        evaluations([])


OLD = {
    "images": "pictures", "real_images": "against", "reference": "converged",
    "inception_score": "score", "propagated": "carried", "propagated_95": "carried_95",
    "local": "own", "local_95": "own_95",
}  # fmt: skip


def old_keys(part, top=True):
    """A record with the keys of the first versions."""
    if not isinstance(part, dict):
        return [old_keys(p, False) for p in part] if isinstance(part, list) else part
    old = OLD if not top else {k: v for k, v in OLD.items() if k != "reference"}
    return {old.get(k, k): old_keys(v, False) for k, v in part.items()}


def test_records_of_earlier_versions_are_read(record, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(old_keys(record)))
    (tmp_path / "new.json").write_text(json.dumps(record))
    old, new = (evaluations([read_evaluation(tmp_path / n)]) for n in ("old.json", "new.json"))
    cells = lambda tables: [[*c.cells] for table in tables for c in table.columns]
    assert cells(old) == cells(new)
    assert len(cells(new)) > 9


def test_progress_is_reported(words):
    seen = []
    evaluate(words, "E2", **FEW, report=seen.append)
    stages = {p.stage for p in seen}
    assert {"reference images", "images of E2", "bootstrap resamples"} <= stages
    assert all(p.done <= p.total for p in seen)


def test_the_function_and_the_package_go_by_one_name():
    assert ft.evaluate is evaluate
    from flowturbo.evaluate.frechet import Moments

    assert Moments().count == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_images": 9}, "num_images=9: must be a whole number from 10"),
        ({"num_images": 24.0}, r"num_images=24\.0: must be a whole number"),
        ({"batch": 0}, "batch=0: must be a whole number from 1"),
        ({"steps": 7}, "steps=7: must be a whole number from 8"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"guidance": "2"}, "guidance='2': must be a finite number"),
        ({"plan": ["E2"]}, "plan=.*: must be a Plan, the notation of one"),
        ({"num_image": 3}, "has no argument 'num_image'; did you mean 'num_images'"),
        ({"prompts": 3}, "prompts=3: must be a list"),
        ({"cache_dir": 3}, "cache_dir=3: must be a path"),
        ({"real_images": b"x"}, "real_images=b'x': must be a path"),
        ({"fid": 1}, "fid=1: must be True or False"),
        ({"features": 3}, "features=3: must be 'auto', 'effnet', a function, or None"),
        ({"resamples": 1}, "resamples=1: must be at least 2"),
        ({"features": lambda p: p}, r"features=<lambda>: gave \(2, 3, 8, 8\)"),
        ({"features": "inception"}, "features='inception': must be 'auto', 'effnet'"),
        ({"features": None, "real_images": "x"}, "features=None, real_images='x'"),
        ({"real_images": "nowhere"}, "real_images: data 'nowhere': no such folder"),
        ({"prompts": []}, r"prompts=\[\]: give at least one"),
        ({"prompts": ["xyzzy"]}, "xyzzy"),
        ({"plan": "H1R1"}, "refiner=None"),
        ({"plan": "Q3"}, "Q3"),
        ({"guidance": 1e30}, r"not finite after evaluation \d+ of .* at t="),
    ],
)
def test_refuses(words, given, message):
    with pytest.raises(ValueError, match=message):
        evaluate(words, **{"plan": "E2"} | FEW | given)


def test_refuses_real_images_that_do_not_fit(words, tmp_path, monkeypatch):
    for name, array in (
        ("wide", np.zeros((12, 3))),
        ("flat", np.zeros(9)),
        ("few", np.zeros((2, 12))),
    ):
        np.savez(tmp_path / f"{name}.npz", features=array)
    for name, message in (
        ("wide", "3 wide"),
        ("flat", r"\(9,\)"),
        ("few", "2 rows of features; at least 10"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(words, "E2", real_images=tmp_path / f"{name}.npz", **FEW)
    (tmp_path / "broken.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        evaluate(words, "E2", real_images=tmp_path / "broken.npz", **FEW)
    monkeypatch.setattr(features, "check_installed", lambda: None)
    with pytest.raises(ValueError, match=r"fid=True, real_images=None: .* pass real_images="):
        evaluate(words, "E2", fid=True, **FEW)
    with pytest.raises(ValueError, match="needs images"):
        evaluate(words, "E2", real_images=tmp_path / "wide.npz", fid=True, **FEW)


class Decoded(ft.Model):
    """A model of latents: its images are 8 times as high and wide as its states."""

    def decode(self, x):
        return super().decode(x).repeat_interleave(8, 2).repeat_interleave(8, 3)


def saved(folder, size):
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def test_real_images_are_read_in_the_size_of_generated_ones(words, tmp_path, monkeypatch):
    shapes = []

    def see(images):
        shapes.append(tuple(images.shape[1:]))
        return pooled(images)

    official = lambda drawn, real, **_: shapes.extend(tuple(p.shape[1:]) for p in (drawn, real))
    monkeypatch.setattr(evaluation, "official_scores", official)
    monkeypatch.setattr(features, "check_installed", lambda: None)
    few = FEW | {"features": see, "real_images": saved(tmp_path / "square", (64, 64))}
    model = Decoded(words.network, words.card)
    evaluate(model, "E2", fid=True, **few)
    assert set(shapes) == {(3, 64, 64)}
    shapes.clear()
    wide = ft.Model(Spread().eval(), {"name": "wide"})
    few["real_images"] = saved(tmp_path / "wide", (8, 16))
    evaluate(wide, "E2", **few)
    assert set(shapes) == {(3, 8, 16)}
    shapes.clear()
    evaluate(ft.Model(Spread((1, 8, 8)).eval(), {"name": "grey"}), "E2", **few)
    assert set(shapes) == {(1, 8, 8)}


class Spread(torch.nn.Module):
    """A field that halves its states; of three channels, twice as wide as high."""

    def __init__(self, shape=(3, 8, 16)):
        super().__init__()
        self.shape = shape
        self.register_parameter("scale", torch.nn.Parameter(torch.tensor(-0.7)))

    def forward(self, x, t, cond=None):
        return self.scale * x


def test_features_of_one_name_are_told_apart(words, tmp_path):
    few = FEW | {"cache_dir": tmp_path}
    evaluate(words, "E2", **few | {"features": lambda p: pooled(p)})
    with pytest.raises(ValueError, match="seen="):
        evaluate(words, "E2", **few | {"features": lambda p: -pooled(p)})


def test_a_network_of_features_may_want_gradients(words):
    few = FEW | {"features": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))}
    assert evaluate(words, "E2", **few)["frechet"]["plan"] > 0
    few["features"] = lambda p: pooled(p) / 0
    with pytest.raises(ValueError, match="not finite, of noise"):
        evaluate(words, "E2", **few)


def test_the_order_of_prompts_does_not_matter():
    """Of two kinds of picture in order, each half and each split has both."""
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    rows[200:] += 20
    found = compare(rows, rows, probabilities=lambda x: (x[:, :2] / 5).softmax(1), resamples=0)
    assert found["frechet"]["reference"] < 50
    mixed = rows[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    score = compare(mixed, mixed, probabilities=lambda x: (x[:, :2] / 5).softmax(1), resamples=0)
    assert found["inception_score"]["plan"]["mean"] == pytest.approx(
        score["inception_score"]["plan"]["mean"], rel=0.02
    )


def test_a_call_that_fails_claims_no_folder(words, tmp_path):
    few = FEW | {"cache_dir": tmp_path}
    with pytest.raises(ValueError, match="not finite"):
        evaluate(words, "E2", guidance=1e30, **few)
    assert not [*tmp_path.iterdir()]
    evaluate(words, "E2", guidance=2.0, **few)


def test_a_damaged_file_is_named_and_generated_again(words, tmp_path):
    few = FEW | {"cache_dir": tmp_path}
    whole = evaluate(words, "E2", **few)
    path = tmp_path / "converged-000000.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    for damaged in (content[:100], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"converged-000000\.safetensors: damaged"):
            assert evaluate(words, "E2", **few) == whole
        assert path.read_bytes() == content
    (tmp_path / "converged-000010.safetensors").replace(path)  # a chunk of other rows
    with pytest.warns(UserWarning, match=r"converged-000000\.safetensors: damaged"):
        assert evaluate(words, "E2", **few) == whole


def test_a_folder_of_another_field_or_in_use_is_refused(words, tmp_path):
    class Scaled(ft.Model):
        scale = 1.0

        def forward(self, x, t, cond=None):
            return self.scale * super().forward(x, t, cond)

    model = Scaled(words.network, words.card)
    few = FEW | {"features": None, "cache_dir": tmp_path}
    evaluate(model, "E2", **few)
    model.scale = 0.9  # the weights are the same
    with pytest.raises(ValueError, match=r"field=.* there, .* now"):
        evaluate(model, "E2", **few)
    with exclusive(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        evaluate(words, "E2", **few)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ft.Plan.parse("AB2:8").restrict(0.4), r"runs from t=0\.\d+ to 1: take one"),
        (ft.Plan.euler(4, direction="backward"), "from data to noise"),
    ],
)
def test_plans_of_a_part_are_refused(words, plan, message):
    with pytest.raises(ValueError, match=message):
        evaluate(words, plan, **FEW)


NOISE = torch.randn(24, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PLAIN = dict(steps=8, batch=10, repeats=0)


def test_any_field_is_measured_on_noise_of_ones_own(tmp_path):
    cond = torch.linspace(0.5, 2.0, 24, dtype=torch.float64)
    field = lambda x, t, cond: -cond[:, None, None] * x
    found = evaluate(field, "E4", noise=NOISE, cond=cond, **PLAIN | {"steps": 64})
    each = ((1 - cond / 4) ** 4 - torch.exp(-cond)).abs() * NOISE.square().mean((1, 2)).sqrt()
    assert found["trajectory"]["rmse"] == pytest.approx(float(each.square().mean().sqrt()), 1e-3)
    assert (found["passes"], found["conditions"]["images"]) == (4, 24)
    assert found["conditions"]["seeds"] is None
    assert "frechet" not in found
    found = evaluate(field, "E4", noise=NOISE, cond=cond, cache_dir=tmp_path / "plain", **PLAIN)
    other = evaluate(field, "AB2:4", noise=NOISE, cond=cond, cache_dir=tmp_path / "plain", **PLAIN)
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert len(evaluations([found, read_evaluation(tmp_path / "other.json")])[0].rows) == 3
    with pytest.raises(ValueError, match="noise"):
        evaluate(field, "E4", noise=-NOISE, cond=cond, cache_dir=tmp_path / "plain", **PLAIN)
    with pytest.raises(ValueError, match="noise="):
        evaluations([found, evaluate(field, "E4", noise=-NOISE, cond=cond, **PLAIN)])


def test_noise_of_ones_own_replaces_that_of_the_seeds(words, record):
    noise = ft.noise.draw(range(24), words.shape)
    same = evaluate(words, "AB2:3", noise=noise, **{k: FEW[k] for k in FEW if k != "num_images"})
    for part in ("trajectory", "perceptual", "frechet", "agreement"):
        assert same[part] == record[part]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "noise=None: a field without a shape needs noise of its own"),
        ({"noise": NOISE[:9]}, r"noise=.*: must be \(N, ...\) with at least 10 rows"),
        ({"noise": NOISE, "num_images": 24}, r"num_images=24 and noise=.*; leave num_images out"),
        ({"noise": NOISE, "cond": NOISE[:5]}, r"cond=.*: noise has 24 rows; must have a row"),
        ({"noise": NOISE, "prompts": ["a"]}, r"prompts=.*: a field without a card takes .* cond="),
        ({"noise": NOISE, "prompts": ["a"], "cond": NOISE}, r"prompts=.* and cond=.*: give one"),
        ({"noise": NOISE, "plan": None}, "plan=None: a field without a card has no default plan"),
        (
            {"noise": NOISE, "features": pooled},
            r"features=.*: a field without a card has no images",
        ),
        ({"noise": NOISE, "features": "effnet"}, r"a card has no images.* flowturbo\.Model"),
        ({"noise": NOISE, "real_images": "."}, r"real_images=.*: a field without a card"),
        ({"noise": NOISE, "fid": True}, "fid=True: a field without a card has no images"),
        ({"noise": NOISE, "plan": "E2R1"}, "refiner"),
    ],
)
def test_refuses_what_a_field_without_a_card_cannot_have(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda x, t, cond=None: -x, **{"plan": "E2"} | PLAIN | options)


def test_refuses_networks_in_training_mode():
    network = torch.nn.Linear(4, 4).double()
    field = Velocity(network)
    with pytest.raises(ValueError, match=r"its Linear is in training mode; call \.eval\(\)"):
        evaluate(field, "E2", noise=NOISE, **PLAIN)
    field.eval()
    assert evaluate(field, "E2", noise=NOISE, **PLAIN)["conditions"]["fingerprint"]


class Velocity(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, cond=None):
        return self.network(x)


def test_refuses_models_without_a_shape_and_what_is_no_list(words):
    with pytest.raises(ValueError, match=r"model='digits': .* flowturbo\.load\('digits'\)"):
        evaluate("digits", "E2", **FEW)
    with pytest.raises(ValueError, match="noise=None: a field without a shape"):
        evaluate(ft.Model(torch.nn.Linear(2, 2).eval(), {"name": "mine"}), "E2", **FEW)
    with pytest.raises(ValueError, match=r"prompts='tiger': pass a list"):
        evaluate(words, "E2", prompts="tiger", **FEW)
    latent = ft.Model(words.network, {**words.card, "codec": {"kind": "latent"}})
    with pytest.raises(ValueError, match=r"generates latents, .* pass features=None"):
        evaluate(latent, "E2", **FEW)
    assert evaluate(latent, "E2", **FEW | {"features": None})["trajectory"]["rmse"] > 0


class Shift(torch.nn.Module):
    """From noise to images of one grey level per label."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.greys = torch.nn.Parameter(torch.tensor([-0.5, 0.5, 0.0]))

    def forward(self, x, t, cond):
        return self.greys[cond][:, None, None, None].expand_as(x)

    def null_condition(self, cond):
        return torch.full_like(cond, 2)


def test_a_module_of_ones_own_gets_a_card():
    about = {"kind": "class", "labels": ["dark", "light"]}
    model = ft.Model(Shift().eval(), {"name": "mine", "condition": about})
    record = evaluate(model, "E2", guidance=2.0, **FEW | {"features": None})
    assert record["trajectory"]["rmse"] < 1e-5  # the field is constant in time
    dark, light = ft.generate(model, ["dark", "light"], plan="E1", guidance=2.0)
    assert np.mean(np.asarray(dark)) < np.mean(np.asarray(light))
    bare = ft.Model(Shift().eval(), {"name": "mine", "condition": {"kind": "class"}})
    with pytest.raises(ValueError, match=r"label .dark.: .* list them under"):
        ft.generate(bare, ["dark"], plan="E1")
    with pytest.raises(ValueError, match='or list them under "labels" or "prompts"'):
        evaluate(bare, "E2", **FEW)


def test_conditions_may_be_more_than_a_tensor():
    class Told(ft.Model):
        def random_condition(self, n, generator):
            told = torch.rand(n, 2, generator=generator)
            return {"text": told.bfloat16(), "size": [told, None]}

        def null_condition(self, cond):
            return cond

    model = Told(Spread().eval(), {"name": "told"})
    found = evaluate(model, "E2", **FEW, guidance=1.0)
    assert len(found["conditions"]["prompts"]) == 16
    assert "agreement" not in found

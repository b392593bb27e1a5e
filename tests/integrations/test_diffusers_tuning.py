"""Pipelines as fields of their prompts, plans tuned to them, and folders of such plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from integrations.pipelines import CELLS, EULER, MORE, embeds
from integrations.prompted import PROMPTS, pipeline, smooth

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.integrations.diffusers import (
    FlowTurboScheduler,
    as_field,
    disable,
    enable,
    push_to_hub,
    save_folder,
)
from flowturbo.integrations.diffusers.families import pack
from flowturbo.integrations.diffusers.folder import read_folder

TEXT_TO_IMAGE = [name for name in CELLS if "img2img" not in name and "inpaint" not in name]
VIDEO_AND_MORE = ("Wan", "LTX", "HunyuanVideo", "Mochi", "Chroma", "CogView4", "HunyuanImage")
RESCALED = ("Lumina2", "Qwen-Image")
FEW = {"nfe": 2, "search": False, "trajectories": 12}


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="plan .* was fitted")
        yield


def _prompts(cell, branches: int) -> tuple[dict, dict | None]:
    """Embeddings of the prompts, and of one negative prompt if there are two branches."""
    given = embeds(cell.parts)
    away = {k: v for k, v in given.items() if k.startswith("negative_")}
    plain = {k: v for k, v in given.items() if k not in away}
    one = {k: None if v is None else v[:1] for k, v in away.items()}
    return plain, one if branches == 2 else None


@pytest.mark.parametrize("name", [*TEXT_TO_IMAGE, *VIDEO_AND_MORE])
@pytest.mark.parametrize("branches", [1, 2])
def test_a_field_is_the_network_as_its_pipeline_calls_it(name, branches):
    """The same latents by our loop on the field, and by the pipeline's own with the plan."""
    if branches == 2 and name in RESCALED:
        pytest.skip("the pipeline rescales guided velocities")
    cell, plan = (CELLS | MORE)[name], ft.Plan.parse("AB2:4@2")
    cell = cell if branches == 2 else cell.unguided()
    pipe, scale = cell.build(_scheduler(cell, name)), 3.0 if branches == 2 else 1.0
    options = {**cell.arguments, "height": cell.size, "width": cell.size, "guidance": scale}
    options.pop(cell.guided or "", None)
    if cell.guided == "true_cfg_scale" and name != "Qwen-Image":
        # in addition to the scale that the network takes
        options |= {"true_cfg_scale": scale, "guidance": None}
    prompts, negative = _prompts(cell, branches)
    field = as_field(pipe, prompts, negative=negative, batch=3, **options)
    assert field.guidance == scale
    x0 = torch.randn(2, *field.shape, generator=torch.Generator().manual_seed(0))
    x1 = ft.sample(plan, field, x0, field.conditions, guidance=scale)
    enable(pipe, plan=plan)
    call = {"latents": field._packed(x0)}
    if cell.guided:
        call[cell.guided] = scale - (name == "Z-Image")
    if branches == 2:
        call |= {
            k: v if v is None else [*v] * 2 if isinstance(v, list) else torch.cat([v, v])
            for k, v in negative.items()
        }
    theirs = cell.call(pipe, len(plan), **call)
    disable(pipe)
    assert torch.allclose(field._packed(x1).reshape(theirs.shape), theirs, atol=2e-5)
    assert x1.std() > 0.1


@pytest.mark.parametrize(
    ("name", "why"), [("Wan 2.2", "two networks"), ("HiDream", "no common batch")]
)
def test_pipelines_that_are_no_field_are_refused(name, why):
    cell = MORE[name]
    prompts, _ = _prompts(cell, 1)
    with pytest.raises(ValueError, match=f"cannot be made a field, since .*{why}"):
        as_field(cell.build(_scheduler(cell, name)), prompts)


def _scheduler(cell, name):
    if "prediction_type" in cell.scheduler:
        return diffusers.UniPCMultistepScheduler(**cell.scheduler)
    return FlowTurboScheduler(sign=1) if name == "U-Net" else EULER(**cell.scheduler)


def test_fields_of_pipelines_that_rescale_guidance_say_so():
    cell = CELLS["Qwen-Image"]
    prompts, negative = _prompts(cell, 2)
    with pytest.warns(UserWarning, match="QwenImagePipeline rescales guided velocities"):
        as_field(cell.build(EULER()), prompts, negative=negative, guidance=3.0, height=16, width=16)


def test_the_scale_that_a_network_takes_is_kept_with_the_plan():
    from integrations.pipelines import flux

    pipe = diffusers.FluxPipeline(scheduler=EULER(), **flux(distilled=True))
    prompts, _ = _prompts(CELLS["Flux"], 1)
    field = as_field(pipe, prompts, guidance=2.5, height=16, width=16)
    assert (field.guidance, field.plan_info["guidance"]) == (1.0, [2.5, 2.5])
    other = as_field(pipe, prompts, guidance=1.5, height=16, width=16)
    x0 = torch.randn(2, *field.shape)
    ours = [ft.sample("AB2:4", f, x0, f.conditions) for f in (field, other)]
    enable(pipe, plan="AB2:4")
    call = {"latents": pack(x0), "true_cfg_scale": 1.0, "guidance_scale": 2.5}
    assert torch.allclose(CELLS["Flux"].call(pipe, 4, **call), pack(ours[0]), atol=1e-5)
    assert not torch.allclose(*ours, atol=1e-3)
    disable(pipe)
    with pytest.raises(ValueError, match=r"guidance=\(1.0, 3.0\): the network of FluxPipeline"):
        as_field(pipe, prompts, guidance=(1.0, 3.0), height=16, width=16)


def test_prompts_of_other_lengths_share_no_call():
    cell = CELLS["Z-Image"]
    pipe, short, long = cell.build(EULER()), torch.randn(3, 16), torch.randn(7, 16)
    options = {"guidance": 1.0, "height": 16, "width": 16}
    field = as_field(pipe, {"prompt_embeds": [short, long]}, **options)
    x = torch.randn(2, *field.shape)
    v = field(x, 0.3, field.conditions)
    for i, prompt in enumerate((short, long)):
        alone = as_field(pipe, {"prompt_embeds": [prompt]}, **options)
        assert torch.allclose(alone(x[i : i + 1], 0.3, alone.conditions)[0], v[i], atol=1e-5)


SD3 = CELLS["SD3"]


def sd3():
    """The pipeline, its prompts as embeddings and one negative prompt."""
    prompts, negative = _prompts(SD3, 2)
    pipe = smooth(SD3.build(EULER(shift=3.0)), "transformer")
    return pipe, {"prompts": prompts, "negative": negative, "size": 16}


@pytest.fixture(scope="module")
def tuned():
    """A plan for the pipeline of SD3."""
    pipe, given = sd3()
    return ft.tune(pipe, guidance=3.0, **given, **FEW)


def test_a_pipeline_is_tuned_to_prompts(tuned):
    assert tuned.info["guidance"] == [3.0, 3.0]
    about = tuned.info["pipeline"]
    assert (about["class"], about["size"]) == ("StableDiffusion3Pipeline", [16, 16])
    assert (about["prompts"], about["branches"]) == (2, 2)
    assert tuned.info["error"]["rmse"] <= tuned.info["baseline"]["rmse"]
    pipe, _ = sd3()

    def drawn(plan):
        pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler, plan=plan)
        return SD3.call(pipe, len(pipe.scheduler._fixed_plan))

    exact = drawn("RK4:24")
    errors = [(drawn(plan) - exact).square().mean() for plan in (tuned, "E2")]
    assert errors[0] < errors[1]


def test_each_prompt_is_encoded_once_and_random_numbers_are_left_alone(monkeypatch):
    pipe, seen = pipeline(), []
    encode = type(pipe).encode_prompt
    monkeypatch.setattr(
        type(pipe),
        "encode_prompt",
        lambda self, prompt, *a, **k: seen.append(prompt) or encode(self, prompt, *a, **k),
    )
    scheduler, state = pipe.scheduler, torch.get_rng_state()
    field = as_field(pipe, PROMPTS)
    assert seen == [[text] for text in PROMPTS]
    assert pipe.scheduler is scheduler
    assert torch.equal(torch.get_rng_state(), state)
    assert field.guidance == 7.5  # of StableDiffusionPipeline
    assert field.shape == (4, 8, 8)
    some = field.random_condition(8, torch.Generator())["prompt"]
    assert set(some.tolist()) == set(field.conditions["prompt"].tolist())


def test_a_field_of_texts_is_that_of_the_pipeline():
    """Encoded by the pipeline, the negative prompt too."""
    pipe, plan = pipeline(), ft.Plan.parse("AB2:3")
    field = as_field(pipe, PROMPTS, negative="fog", guidance=3.0)
    x0 = torch.randn(3, *field.shape)
    ours = ft.sample(plan, field, x0, field.conditions, guidance=3.0)
    enable(pipe, plan=plan)
    call = {"guidance_scale": 3.0, "output_type": "latent", "num_inference_steps": 3}
    theirs = pipe(PROMPTS, negative_prompt=["fog"] * 3, latents=x0, **call).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_interrupted_search_goes_on_with_the_same_prompts_only(tmp_path):
    pipe, given = sd3()
    options = {**given, "passes": 4, "search": False, "trajectories": 12}
    options |= {"guidance": 3.0, "cache_dir": tmp_path}
    plan = ft.tune(pipe, **options)
    kept = (tmp_path / "journal.jsonl").read_bytes()
    assert ft.tune(pipe, **options).digest == plan.digest
    assert (tmp_path / "journal.jsonl").read_bytes() == kept
    options["prompts"] = {name: v + 0.01 for name, v in options["prompts"].items()}
    with pytest.raises(ValueError, match="condition="):
        ft.tune(pipe, **options)


@pytest.fixture(scope="module")
def refiner():
    pipe, given = sd3()
    few = dict(iterations=2, batch=4, trajectories=4, steps=4, width=8, guidance=3.0)
    made = ft.train_refiner(pipe, **given, **few)
    torch.nn.init.normal_(made.network.modulation.weight)
    torch.nn.init.normal_(made.network.last.weight, std=0.3)
    return made


def mixed(info) -> ft.Plan:
    """Four evaluations, the third one of a refiner."""
    letters = ("model", "model", "refiner", "model")
    return replace(ft.Plan.parse("AB2:4@2"), evaluators=letters, name="mixed", info=info)


def test_a_refiner_sees_the_pooled_vector_in_the_pipeline_as_in_training(refiner):
    assert refiner.network.pooled.in_features == 16
    pipe, given = sd3()
    plan = mixed({})
    del given["size"]
    field = as_field(pipe, guidance=3.0, height=16, width=16, **given)
    x0 = torch.randn(2, *field.shape)
    ours = ft.sample(plan, field, x0, field.conditions, guidance=3.0, refiner=refiner)
    enable(pipe, plan=plan, refiner=refiner)
    away = {k: torch.cat([v, v]) for k, v in given["negative"].items()}
    assert torch.allclose(SD3.call(pipe, 4, latents=x0, **away), ours, atol=1e-5)
    other = {**field.conditions, "pooled": -field.conditions["pooled"]}
    unlike = ft.sample(plan, field, x0, other, guidance=3.0, refiner=refiner)
    assert not torch.allclose(unlike, ours, atol=1e-3)
    with pytest.raises(ValueError, match="made for conditions with 'pooled', here"):
        ft.sample(plan, lambda x, t, c: x, x0, guidance=1.0, refiner=refiner)


def test_a_folder_holds_plan_refiner_and_card(tmp_path, tuned, refiner):
    plan = mixed(tuned.info)
    save_folder(tmp_path / "fit", plan, refiner)
    read, own = read_folder(tmp_path / "fit")
    assert read.digest == plan.digest
    assert own.fingerprint == refiner.fingerprint
    card = (tmp_path / "fit" / "README.md").read_text()
    front = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    assert json.loads(front["license"]) == "apache-2.0"
    assert json.loads(front["library_name"]) == "diffusers"
    rmse, (low, high) = tuned.info["error"]["rmse"], tuned.info["error"]["rmse_95"]
    assert f"| error | {rmse:.4f} ({low:.4f} to {high:.4f})" in card
    assert tuned.info["fingerprint"] in card
    assert "guidance_scale=3.0" in card
    assert "| passes of the network per image | 6 |" in card
    pipe, _ = sd3()
    enable(pipe, tmp_path / "fit")
    assert SD3.call(pipe, 4).isfinite().all()
    with pytest.raises(ValueError, match="1 refiner evaluations, and refiner=None"):
        save_folder(tmp_path / "none", plan)
    with pytest.raises(ValueError, match="was not tuned to a pipeline"):
        save_folder(tmp_path / "none", ft.Plan.parse("AB2:4"))
    assert not (tmp_path / "none").exists()


def test_other_weights_guidance_and_size_warn_with_the_command(tmp_path, tuned):
    save_folder(tmp_path / "fit", tuned)
    (pipe, _), made = sd3(), tuned.info["fingerprint"]
    enable(pipe, str(tmp_path / "fit"))
    SD3.call(pipe, 2)
    command = "flowturbo tune --pipeline PATH --prompts FILE --nfe 2 --guidance"
    scale = f"fitted at guidance 3, and this call has 7: .*{command} 7 --size 16x16 -o FOLDER"
    with pytest.warns(UserWarning, match=scale):
        SD3.call(pipe, 2, guidance_scale=7.0)
    size = f"fitted at 16x16 pixels, and this call .*{command} 3 --size WIDTHxHEIGHT -o FOLDER"
    with pytest.warns(UserWarning, match=size):
        SD3.call(pipe, 2, width=8)
    disable(pipe)
    weight = pipe.transformer.proj_out.weight
    before = weight.clone()
    try:
        weight += 0.1
        with pytest.warns(UserWarning, match=f"weights {made} of .* this .* are [0-9a-f]{{16}}"):
            enable(pipe, tmp_path / "fit")
    finally:
        weight.copy_(before)
    disable(pipe)


def test_a_refiner_for_another_pipeline_is_refused(tuned, refiner):
    pipe = CELLS["Flux"].build(EULER())
    with pytest.raises(ValueError, match="latents of a SD3Transformer2DModel, and the network is"):
        enable(pipe, mixed(tuned.info), refiner)
    with pytest.raises(ValueError, match="pooled vector of 16 numbers, and this AuraFlow has none"):
        enable(CELLS["AuraFlow"].build(EULER()), mixed({}), refiner)


def test_a_folder_on_the_hub_is_fetched_and_pushed(tmp_path, monkeypatch, tuned):
    save_folder(tmp_path / "fit", tuned)
    (tmp_path / "fit" / "notes.txt").write_text("mine")
    calls = []

    def upload(**given):
        calls.append(given)
        return SimpleNamespace(commit_url="https://huggingface.co/me/fit/commit/1")

    monkeypatch.setattr("huggingface_hub.create_repo", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    assert push_to_hub(tmp_path / "fit", "hf:me/fit").endswith("commit/1")
    assert calls[0] == (("me/fit",), {"private": False, "exist_ok": True})
    assert calls[1]["allow_patterns"] == ["plan.json", "README.md"]
    assert Path(calls[1]["folder_path"]) == tmp_path / "fit"

    def download(repo, **given):
        assert (repo, given["revision"]) == ("me/fit", None)
        return str(tmp_path / "fit")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipe, _ = sd3()
    enable(pipe, "hf:me/fit")
    assert SD3.call(pipe, 2).isfinite().all()
    disable(pipe)

    def offline(*given, **more):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"plan 'hf:me/fit' could not be fetched .*: no network"):
        enable(pipe, "hf:me/fit")
    monkeypatch.setattr("huggingface_hub.create_repo", offline)
    with pytest.raises(ValueError, match=r"repo='me/fit': could not be uploaded .*: no network"):
        push_to_hub(tmp_path / "fit", "me/fit")
    with pytest.raises(ValueError, match="repo='fit': must be owner/repo"):
        push_to_hub(tmp_path / "fit", "fit")


def test_three_commands_from_prompts_to_an_image(tmp_path, monkeypatch, capsys):
    """A refiner, a plan with it, and the pipeline enabled with their folder."""
    monkeypatch.chdir(tmp_path)
    pipeline().save_pretrained("pipe")
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    common = "--pipeline pipe --prompts prompts.txt --guidance 3 --size 16 --device cpu"
    for line in (
        f"train-refiner {common} --trajectories 24 --steps 6 --iterations 60 --batch 8 -o refiner",
        f"tune {common} --nfe 2 --no-search --trajectories 12 --refiner refiner --refiner-cost 0 "
        "-o fit",
    ):
        with pytest.raises(SystemExit) as e:
            main(line.split())
        assert e.value.code == 0, capsys.readouterr().err
    plan = ft.Plan.load("fit/plan.json")
    assert {"plan.json", "README.md"} <= {p.name for p in Path("fit").iterdir()}
    pipe = diffusers.DiffusionPipeline.from_pretrained("pipe")
    pipe.set_progress_bar_config(disable=True)
    enable(pipe, "fit")
    call = {"guidance_scale": 3.0, "height": 16, "width": 16}
    image = pipe("a fox", num_inference_steps=len(plan), **call).images[0]
    assert image.size == (16, 16)
    assert "-> fit" in capsys.readouterr().out


def test_a_pipeline_on_the_hub_may_have_a_revision(tmp_path, monkeypatch):
    asked = []

    def offline(source, *, revision, **more):
        asked.append((source, revision))
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", offline)
    Path("prompts.txt").write_text("a fox\n")
    for name in ("hf:me/pipe", "hf:me/pipe@v1"):
        with pytest.raises(SystemExit):
            main(f"tune --pipeline {name} --prompts prompts.txt -o fit".split())
    assert asked == [("me/pipe", None), ("me/pipe", "v1")]


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("prompts.txt").write_text("a fox\n")
    Path("gap.txt").write_text("a fox\n\na cat\n")
    Path("folder").mkdir()
    for line, message in (
        ("tune -o x", "give --model, or --pipeline with --prompts"),
        ("tune --model digits --prompts prompts.txt -o x.json", "--prompts: goes with --pipeline"),
        ("tune --model digits --pipeline folder -o x", "give one of them"),
        ("tune --pipeline folder -o x", "--pipeline folder: needs --prompts FILE"),
        (
            "tune --pipeline folder --prompts empty.txt -o x",
            "contains no prompts; write one per line",
        ),
        ("tune --pipeline folder --prompts gap.txt -o x", "gap.txt: line 2 is empty; remove it"),
        ("tune --pipeline folder --prompts none.txt -o x", "--prompts none.txt: cannot be read"),
        ("tune --pipeline folder --prompts prompts.txt -o x.json", "is written to a folder"),
        ("tune --pipeline folder --prompts prompts.txt -o x", "no folder with a model_index.json"),
        ("tune --pipeline hf:one --prompts prompts.txt -o x", "it is written hf:owner/repo or hf:"),
        ("tune --pipeline folder --prompts prompts.txt --size 1k -o x", "size='1k': must be"),
        ("train-refiner --pipeline folder --prompts prompts.txt -o x --paper", "--paper: trains"),
    ):
        with pytest.raises(SystemExit) as e:
            main(line.split())
        error = capsys.readouterr().err
        assert (e.value.code, message in error) == (2, True), error
        assert len(error.splitlines()) == 1, error


def test_bad_arguments_are_one_sentence(tmp_path):
    pipe, cell = pipeline(), CELLS["SD3 img2img"]
    unknown = pipeline()
    unknown.unet = torch.nn.Linear(1, 1)
    for call, message in (
        (lambda: ft.tune(pipe), "prompts=None: tune of a pipeline needs them"),
        (lambda: ft.tune(pipe, prompts=[]), "prompts"),
        (lambda: ft.tune(pipe, prompts=["a", " "]), r"prompts\[1\]=' ': is empty"),
        (lambda: ft.tune(pipe, prompts=["a"], size="big"), "size='big'"),
        (lambda: ft.tune(pipe, prompts=["a"], negative=["a", "b"]), "negative=.*one prompt"),
        (lambda: ft.tune(pipe, prompts=["a"], guidance=(3, 1)), r"guidance=.*\(lowest, highest\)"),
        (lambda: ft.tune(pipe, prompts=["a"], cond=1), "cond=1: a pipeline takes prompts"),
        (lambda: ft.tune(lambda x, t, c: x, prompts=["a"]), "is for a pipeline of diffusers"),
        (lambda: as_field(unknown, ["a"]), "Linear: how its pipeline calls it is not known"),
        (lambda: as_field(cell.build(EULER()), ["a"]), "pass the text-to-image pipeline"),
        (lambda: as_field(pipe, ["a"], height=16), "give both, or none"),
        (lambda: as_field(pipe, ["a"], promt="b"), "promt"),
        (lambda: enable(pipe, tmp_path / "none"), "no such folder; flowturbo tune --pipeline"),
        (lambda: enable(pipe, tmp_path), "holds no plan.json; flowturbo tune --pipeline"),
        (lambda: push_to_hub(tmp_path, "me/fit"), "holds no plan.json"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_folder_of_others_is_read_as_what_it_is(tmp_path, tuned):
    """Entries about the pipeline are checked, and a path is told from notation."""
    text = tuned.to_json().replace('"size": [', '"sizes": [')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="size"):
        enable(pipeline(), tmp_path)
    long = "AB2:" + "F" * 400
    pipe = pipeline()
    enable(pipe, plan=long)
    disable(pipe)


def test_conditions_are_those_of_the_field():
    field = as_field(pipeline(), PROMPTS, guidance=1.0)
    x = torch.randn(2, *field.shape)
    for cond, message in (
        (None, "must be conditions of this field, 2 rows"),
        (field.conditions, "must be conditions of this field, 2 rows"),
        ({"prompt": torch.tensor([1, 2])}, "a prompt that this field was not made with"),
    ):
        with pytest.raises(ValueError, match=message):
            field(x, 0.5, cond)
    with pytest.raises(ValueError, match="no other branch of guidance"):
        field.null_condition(field.conditions)


@pytest.mark.slow
def test_two_processes_train_a_refiner_of_a_pipeline(tmp_path):
    pipeline().save_pretrained(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    line = (
        "flowturbo train-refiner --pipeline pipe --prompts prompts.txt --guidance 3 --size 16 "
        "--device cpu --trajectories 24 --steps 6 --iterations 4 --batch 4 -o refiner"
    )
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *line.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    field = as_field(pipeline(), PROMPTS, guidance=3.0)
    assert ft.load_refiner(tmp_path / "refiner", field).guidance_range == (3.0, 3.0)
    made = json.loads((tmp_path / "refiner" / "refiner-run" / "config.json").read_text())
    assert made["run"]["processes"] == 2

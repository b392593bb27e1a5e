"""The scheduler, plans and refiners in pipelines of every family, through the loops they have."""

import copy
import inspect
import re
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fields import gaussian, gaussian_flow
from PIL import Image

import flowturbo as ft
from flowturbo.images import to_pil
from flowturbo.refiner import PaperRefiner, VelocityRefiner, load_refiner, save_refiner

diffusers = pytest.importorskip("diffusers")

from integrations import pipelines  # noqa: E402
from integrations.pipelines import CELLS, EULER  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FAMILIES,
    Family,
    FlowTurboScheduler,
    disable,
    enable,
    summary,
)
from flowturbo.integrations.diffusers.families import pack, unpack  # noqa: E402

STEPS = 4
REFINED = ft.Plan.parse("AB2:FFRFRF")
MATRIX = [(name, dynamic) for name, cell in CELLS.items() for dynamic in {False, cell.dynamic}]
TWICE = ("Flux", "Lumina2", "Qwen-Image")  # call the network once for each branch of guidance


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def flow_scheduler(name, **config):
    """What such a pipeline comes with; but U-Nets come with a diffusion's, which will not do."""
    if CELLS[name].parts == "unet":
        return FlowTurboScheduler(sign=1, shift=2.0)
    return EULER(shift=3.0, **config)


def network(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


@pytest.fixture
def counted(monkeypatch):
    """A function: count the evaluations of a pipeline's network, which runs as before."""

    def count(pipe):
        calls, inner = [], network(pipe).forward

        def forward(*args, **kwargs):
            calls.append(kwargs.get("timestep", args[1] if len(args) > 1 else None))
            return inner(*args, **kwargs)

        monkeypatch.setattr(network(pipe), "forward", forward)
        return calls

    return count


def branches(name):
    return 2 if name.split(" i")[0] in TWICE else 1


def start(name, steps, strength=0.6):
    kept = steps * strength if CELLS[name].image else steps
    return int(steps - (int(kept) if CELLS[name].parts == "unet" else kept))


class Probe:
    """A refiner that keeps what it is shown, and answers with something else in each place."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, t, cond, history):
        places = torch.linspace(-1, 1, x[0].numel()).reshape(x[0].shape)
        v = history[-1][1] + 0.3 * places * x
        self.seen.append((x, t, history, v))
        return v


# -- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dynamic"), MATRIX)
def test_scheduler_runs_in_every_pipeline(name, dynamic, counted):
    cell = CELLS[name]
    original = flow_scheduler(name, **({"use_dynamic_shifting": True} if dynamic else {}))
    pipe = cell.build(FlowTurboScheduler.from_config(original.config))
    calls = counted(pipe)
    result = cell.call(pipe, STEPS)
    assert result.isfinite().all()
    assert len(calls) == (STEPS - start(name, STEPS)) * branches(name)
    assert pipe.scheduler.step_index == STEPS


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.parts != "unet"])
def test_as_euler_it_does_what_flow_match_euler_does(name):
    cell = CELLS[name]
    given = {"sigmas": np.linspace(1, 1 / STEPS, STEPS).tolist()}
    theirs = cell.call(cell.build(EULER(shift=3.0)), STEPS, **given)
    ours = cell.call(cell.build(FlowTurboScheduler(shift=3.0, solver="E")), STEPS, **given)
    second = cell.call(cell.build(FlowTurboScheduler(shift=3.0)), STEPS, **given)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (second - theirs).abs().max() > 1e-2


def test_velocity_unet_is_sampled_as_the_library_does():
    cell, generator = CELLS["U-Net"], torch.Generator().manual_seed(0)
    pipe = cell.build(FlowTurboScheduler(sign=1))
    x0 = torch.randn(2, 4, 8, 8, generator=generator)
    given = pipelines.embeds("unet")

    class Field:
        def __call__(self, x, t, cond):
            return pipe.unet(x, 1000 * (1 - t), cond, return_dict=False)[0]

    cond, null = given["prompt_embeds"], given["negative_prompt_embeds"]
    expected = ft.sample("AB2:4", Field(), x0, cond, guidance=3.0, negative=null)
    assert torch.allclose(cell.call(pipe, 4, latents=x0), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "dynamic"), MATRIX)
def test_refiner_answers_at_its_rows_in_every_pipeline(name, dynamic, counted):
    cell, probe = CELLS[name], Probe()
    before = flow_scheduler(name, **({"use_dynamic_shifting": True} if dynamic else {}))
    pipe = cell.build(before)
    calls = counted(pipe)
    original = cell.call(pipe, 2)
    attributes = set(vars(network(pipe)))
    calls.clear()

    enable(pipe, plan=REFINED, refiner=probe)
    states = []

    def keep(pipe, i, t, kept):
        states.append(kept["latents"])
        return kept

    strength = {"strength": 0.67} if cell.image else {}
    cell.call(pipe, len(REFINED), callback_on_step_end=keep, **strength)
    first = start(name, len(REFINED), 0.67)
    plan = REFINED.restrict(REFINED.times[first])
    assert len(calls) == plan.nfe["model"] * branches(name)
    assert len(probe.seen) == plan.nfe["refiner"] > 0
    check_rows(plan, states, probe.seen, edited=cell.mask)

    disable(pipe)
    assert pipe.scheduler is before
    assert set(vars(network(pipe))) == attributes
    assert torch.equal(cell.call(pipe, 2), original)


def check_rows(plan, states, seen, edited):
    """The refiner saw the states, and the plan's sums of what it saw and said moved them."""
    said = {}
    rows = [k for k, evaluator in enumerate(plan.evaluators) if evaluator == "refiner"]
    for k, (x, t, history, v) in zip(rows, seen, strict=True):
        assert t == plan.model_times[k]
        assert x.shape[-2:] in ((8, 8), (16, 16))
        assert [time for time, _ in history] == plan.model_times[:k].tolist()
        said.update({j: u for j, (_, u) in enumerate(history)})
        said[k] = v
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        here, there = (s if s.ndim == 4 else unpack(s, (h, w)) for s in states[k - 1 : k + 1])
        assert torch.allclose(x, here, atol=1e-5)
        moved = sum(plan.weights[k, j] * said[j] for j in range(k + 1))
        if edited:  # the left half is painted
            here, there, moved = (s[..., : 2 * w // 2] for s in (here, there, moved))
        assert torch.allclose(there, here + moved, atol=1e-5)


def test_packing_is_that_of_the_pipelines():
    x = torch.randn(2, 4, 6, 8)
    tokens = diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), tokens)
    assert torch.equal(unpack(tokens, (3, 4)), x)


# -- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "order"), [(True, 2), (False, 1)], ids=["ours", "Euler"])
def test_order_of_convergence_in_the_loop_of_a_pipeline(ours, order, monkeypatch):
    cell = CELLS["SD3"]
    pipe = cell.build(FlowTurboScheduler() if ours else EULER())
    x0 = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(
        pipe.transformer,
        "forward",
        lambda hidden_states, timestep, **_: (
            -gaussian(hidden_states, 1 - timestep.double().reshape(-1, 1, 1, 1) / 1000),
        ),
    )
    counts, errors = np.array([8, 16, 32]), []
    for n in counts:
        x = cell.call(pipe, n, latents=x0, sigmas=np.linspace(1, 1 / n, n).tolist())
        errors.append((x - gaussian_flow(x0, 0.0, 1.0)).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.image])
def test_image_to_image_starts_at_its_noise_level(name, counted, monkeypatch):
    made = []
    inner = FlowTurboScheduler.scale_noise

    def spy(self, sample, timestep, noise=None):
        made.append((sample, noise, inner(self, sample, timestep, noise)))
        return made[-1][-1]

    monkeypatch.setattr(FlowTurboScheduler, "scale_noise", spy)
    cell = CELLS[name]
    pipe = cell.build(FlowTurboScheduler(shift=3.0, sign=1 if cell.parts == "unet" else -1))
    calls = counted(pipe)
    result = cell.call(pipe, 5)  # strength .6 of 5 steps: the last 3
    sigma = 3 * 0.6 / (1 + 2 * 0.6)
    sample, noise, state = made[0]
    assert torch.allclose(state, sigma * noise + (1 - sigma) * sample, atol=1e-5)
    time = calls[0].flatten()[0].item()
    time = 1 - time if FAMILIES[type(network(pipe)).__name__].negated else time
    assert time == pytest.approx(sigma * (1000 if time > 1 else 1), rel=1e-4)
    assert len(calls) == 3 * branches(name)
    if cell.mask:
        kept = made[-1][0]
        if kept.ndim == 3:
            result, kept = unpack(result, (4, 4)), unpack(kept, (4, 4))
        for k, (clean, noise, state) in enumerate(made[1:], 1):  # with each state of the run
            level = pipe.scheduler.sigmas[start(name, 5) + k]
            assert torch.allclose(state, level * noise + (1 - level) * clean, atol=1e-5)
        half = kept.shape[-1] // 2
        assert torch.equal(result[..., half:], kept[..., half:])
        assert not torch.equal(result[..., :half], kept[..., :half])


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.mask])
def test_pixels_that_are_not_painted_keep_their_bits_once_pasted_back(name):
    """As docs/diffusers.md says; the autoencoder's round trip changes them otherwise."""
    cell = CELLS[name]
    pipe = cell.build(flow_scheduler(name))
    enable(pipe, plan="AB2:4@3")
    crops = "padding_mask_crop" in inspect.signature(type(pipe).__call__).parameters
    size = (20, 30) if crops else (16, 16)  # Z-Image takes images of its own size
    (image,) = to_pil(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    painted = Image.new("L", image.size)
    painted.paste(255, (4, 4, 12, 16))
    one = {k: v if v is None else v[:1] for k, v in pipelines.embeds(cell.parts).items()}
    given = {"image": image, "mask_image": painted, "output_type": "pil", "strength": 1.0, **one}
    (plain,) = cell.call(pipe, 4, **given)
    results = [Image.composite(plain.resize(image.size), image, painted)]
    if crops:
        results += cell.call(pipe, 4, padding_mask_crop=4, **given)
    kept = np.asarray(painted) == 0
    assert (np.asarray(plain.resize(image.size)) != np.asarray(image))[kept].any()
    for result in results:
        same = np.asarray(result) == np.asarray(image)
        assert same[kept].all()
        assert not same[~kept].all()
    disable(pipe)


# -- together with the rest of diffusers ----------------------------------------------------------


def own_sd3():
    """An SD3 pipeline whose transformer no other test has."""
    cell = CELLS["SD3"]
    pipe = cell.build(EULER(shift=3.0))
    pipe.transformer = copy.deepcopy(pipe.transformer)
    return cell, pipe


def small(guidance=(1.0, 5.0)):
    torch.manual_seed(0)
    refiner = VelocityRefiner.small((16, 8, 8), guidance, width=8, depth=1)
    torch.nn.init.normal_(refiner.network.last.weight, std=0.1)
    return refiner.eval().requires_grad_(False)


def test_threads_with_copies_of_the_scheduler_share_an_enabled_pipeline():
    cell, pipe = own_sd3()
    enable(pipe, plan=REFINED, refiner=small(), guidance=3.0)
    barrier, results = threading.Barrier(8, timeout=60), {}

    def in_step(pipe, i, t, kept):
        barrier.wait()  # all have stepped, and none has called the network again
        return kept

    def request(i):
        mine = copy.copy(pipe)
        mine.scheduler = copy.copy(pipe.scheduler)
        results[i] = cell.call(mine, len(REFINED), seed=i, callback_on_step_end=in_step)

    threads = [threading.Thread(target=request, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert torch.allclose(results[i], cell.call(pipe, len(REFINED), seed=i), atol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["enabled, offloaded", "offloaded, enabled"])
def test_cpu_offload(first):
    """From the CPU to the CPU: accelerate's hooks come and go as with an accelerator."""
    cell, pipe = own_sd3()
    original = cell.call(pipe, 2)
    expected, calls = {}, []
    for offloaded in (False, True):
        probe = Probe()
        if offloaded and not first:
            pipe.enable_model_cpu_offload(device="cpu")
        enable(pipe, plan=REFINED, refiner=probe)
        if offloaded and first:
            pipe.enable_model_cpu_offload(device="cpu")
        for run in range(2):  # after each, the pipeline takes the hooks of accelerate off and on
            expected[offloaded, run] = cell.call(pipe, len(REFINED))
            calls.append(len(probe.seen))
        disable(pipe)
    assert calls == [2, 4, 2, 4]
    assert all(torch.equal(x, expected[False, 0]) for x in expected.values())
    assert torch.equal(cell.call(pipe, 2), original)
    assert hasattr(pipe.transformer, "_hf_hook")
    pipe.remove_all_hooks()
    assert torch.equal(cell.call(pipe, 2), original)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_blocks(backend):
    cell, pipe = own_sd3()
    enable(pipe, plan=REFINED, refiner=small(), guidance=3.0)
    expected = cell.call(pipe, len(REFINED))
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    assert torch.allclose(cell.call(pipe, len(REFINED)), expected, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.allclose(cell.call(pipe, len(REFINED)), expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    disable(pipe)
    assert not getattr(pipe.transformer, "_repeated_blocks", None)


@pytest.mark.parametrize("first", [True, False], ids=["enabled, compiled", "compiled, enabled"])
def test_a_network_compiled_whole(first):
    cell, pipe = own_sd3()
    original = cell.call(pipe, 2)
    enable(pipe, plan=REFINED, refiner=Probe())
    expected = cell.call(pipe, len(REFINED))
    torch._dynamo.reset()
    if not first:
        disable(pipe)
    pipe.transformer.compile(backend="eager")
    if not first:
        assert torch.allclose(cell.call(pipe, 2), original, atol=1e-5)
        enable(pipe, plan=REFINED, refiner=Probe())
    assert torch.allclose(cell.call(pipe, len(REFINED)), expected, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.allclose(cell.call(pipe, len(REFINED)), expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    disable(pipe)
    assert torch.allclose(cell.call(pipe, 2), original, atol=1e-5)


def test_disable_leaves_no_trace():
    _, pipe = own_sd3()
    before = dict(vars(pipe)), dict(vars(pipe.transformer))
    enable(pipe, plan=REFINED, refiner=Probe())
    assert before != (dict(vars(pipe)), dict(vars(pipe.transformer)))
    disable(pipe)
    assert before == (dict(vars(pipe)), dict(vars(pipe.transformer)))


def test_a_saved_and_loaded_pipeline_generates_the_same(tmp_path):
    cell, pipe = own_sd3()
    enable(pipe, plan="UNIPC2:4@3")
    expected = cell.call(pipe, 4)
    pipe.save_pretrained(tmp_path)
    text = {name: None for name, part in pipe.components.items() if part is None}
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **text)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, FlowTurboScheduler)
    assert torch.equal(cell.call(loaded, 4), expected)


def test_distilled_guidance_of_flux_is_the_networks_own():
    cell = CELLS["Flux"]
    pipe = diffusers.FluxPipeline(scheduler=EULER(shift=3.0), **pipelines.flux(distilled=True))
    pipe.set_progress_bar_config(disable=True)
    probe = Probe()
    enable(pipe, plan=REFINED, refiner=probe)
    drawn = [
        cell.call(pipe, len(REFINED), guidance_scale=w, true_cfg_scale=1.0) for w in (1.0, 8.0)
    ]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    assert len(probe.seen) == 2 * REFINED.nfe["refiner"]
    disable(pipe)


@pytest.mark.parametrize(
    ("name", "scale"), [("SD3", 3.0), ("Lumina2", 3.0), ("Z-Image", 2.0), ("U-Net", 3.0)]
)
def test_a_call_with_another_guidance_scale_warns(name, scale, recwarn):
    cell = CELLS[name]
    pipe = cell.build(flow_scheduler(name))
    scales = []

    class Told:
        guidance_range = (1.0, 9.0)

        def __call__(self, x, t, cond, history, guidance):
            scales.append(guidance)
            return history[-1][1]

    enable(pipe, plan=REFINED, refiner=Told(), guidance=3.0)
    try:
        cell.call(pipe, len(REFINED), guidance_scale=scale)
        assert not [w for w in recwarn if "guidance" in str(w.message)]
        with pytest.warns(UserWarning, match=r"guidance_scale=5.*guidance=3.*enable"):
            cell.call(pipe, len(REFINED), guidance_scale=5.0)
    finally:
        disable(pipe)
    assert scales == 4 * [3.0]


def test_blocks_that_repeat_are_named_right():
    known = {name: family.blocks for name, family in FAMILIES.items() if family.blocks}
    assert known
    for cell in CELLS.values():
        pipe = cell.build(EULER())
        blocks = known.get(type(network(pipe)).__name__, ())
        assert set(blocks) <= {type(m).__name__ for m in network(pipe).modules()}


def test_lora():
    pytest.importorskip("peft")
    cell, pipe = own_sd3()
    probe = Probe()
    enable(pipe, plan=REFINED, refiner=probe)
    plain = cell.call(pipe, len(REFINED))
    made, lora = torch.Generator().manual_seed(0), {}
    for name in ("to_q", "to_k"):
        key = f"transformer.transformer_blocks.0.attn.{name}.lora_"
        lora |= {f"{key}{part}.weight": torch.randn(4, 16, generator=made) for part in "A"}
        lora |= {f"{key}{part}.weight": torch.randn(16, 4, generator=made) for part in "B"}
    pipe.load_lora_weights(lora, adapter_name="style")
    styled = cell.call(pipe, len(REFINED))
    pipe.unload_lora_weights()
    assert (styled - plain).abs().max() > 1e-3
    assert torch.allclose(cell.call(pipe, len(REFINED)), plain, atol=1e-6)
    assert len(probe.seen) == 3 * REFINED.nfe["refiner"]
    disable(pipe)


def test_callback_on_step_end_sees_previews_and_may_edit():
    cell, pipe = own_sd3()
    probe = Probe()
    enable(pipe, plan=REFINED, refiner=probe)
    previews = []

    def callback(pipe, i, t, kept):
        previews.append(pipe.scheduler.predicted)
        return {"latents": kept["latents"].clamp(-1, 1)}

    result = cell.call(pipe, len(REFINED), callback_on_step_end=callback)
    assert len(previews) == len(REFINED)
    assert all(x.shape == result.shape for x in previews)
    assert all(x.abs().max() <= 1 for x, *_ in probe.seen)
    disable(pipe)


def test_another_pipeline_run_in_between_does_not_matter():
    cell, pipe = own_sd3()
    other = CELLS["Sana"].build(FlowTurboScheduler())
    enable(pipe, plan=REFINED, refiner=Probe())
    expected = cell.call(pipe, len(REFINED))

    def callback(pipe, i, t, kept):
        if i == 2:
            CELLS["Sana"].call(other, 2)
        return kept

    assert torch.equal(cell.call(pipe, len(REFINED), callback_on_step_end=callback), expected)
    disable(pipe)


def test_half_precision_stays():
    cell, pipe = own_sd3()
    pipe.transformer.to(torch.bfloat16)
    enable(pipe, plan=REFINED, refiner=small(), guidance=3.0)
    embeds = {k: v.bfloat16() for k, v in pipelines.embeds("sd3").items()}
    result = cell.call(pipe, len(REFINED), **embeds)
    assert result.dtype == torch.bfloat16
    assert result.isfinite().all()


# -- refusals, warnings and the summary ----------------------------------------------------------


def test_refusals_leave_the_pipeline_alone():
    cell, pipe = own_sd3()
    before = dict(vars(pipe)), set(vars(pipe.transformer))
    cases = [
        ({"plan": REFINED}, "pass both, or none"),
        ({"refiner": Probe()}, "pass both, or none"),
        ({"plan": REFINED, "refiner": small()}, r"guidance 1 to 5.*guidance=\.\.\."),
        ({"plan": REFINED, "refiner": small(), "guidance": 9.0}, "9"),
        ({"plan": "H1P0R1", "refiner": small(), "guidance": 3.0}, "distinct times|H1P0R1"),
        ({"plan": REFINED, "refiner": PaperRefiner(None)}, "before guidance"),
        ({"plan": "nonsense"}, "'nonsense'"),
        ({"plan": "AB2:4", "guidance": 3.0}, "there is none; leave it out"),
        ({"plan": REFINED, "refiner": "small"}, "refiner 'small': no such model or folder"),
        ({"plan": "absent.json"}, "plan='absent.json': cannot read"),
        ({"plan": "AB2:4", "family": "SD3"}, "family='SD3': must be a Family"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            enable(pipe, **given)
        assert (dict(vars(pipe)), set(vars(pipe.transformer))) == before
    with pytest.raises(ValueError, match="not enabled"):
        disable(pipe)
    enable(pipe, plan="AB2:4")
    with pytest.raises(ValueError, match="enabled already"):
        enable(pipe)
    with pytest.raises(ValueError, match=r"num_inference_steps=8.*4 evaluations"):
        cell.call(pipe, 8)


def test_plan_and_refiner_of_a_folder_are_enabled_by_their_paths(tmp_path):
    refiner = small((1.0, 1.0))
    save_refiner(tmp_path, refiner)
    REFINED.save(tmp_path / "plan.json")
    cell, pipe = own_sd3()
    results = []
    for plan, used in ((tmp_path / "plan.json", tmp_path), (REFINED, load_refiner(tmp_path))):
        enable(pipe, plan=plan, refiner=used)
        results.append(cell.call(pipe, len(REFINED), guidance_scale=1.0))
        disable(pipe)
    assert torch.equal(*results)


def test_a_refiner_is_left_alone_by_a_plan_without_rows_for_it():
    cell, pipe = own_sd3()
    enable(pipe, plan="AB2:4", refiner=Probe())
    assert "refiner: " not in summary(pipe)
    cell.call(pipe, 4)
    disable(pipe)


def test_the_scale_of_a_refiner_for_one_scale_alone_is_checked():
    cell, pipe = own_sd3()
    enable(pipe, plan=REFINED, refiner=small((1.0, 1.0)))
    with pytest.warns(UserWarning, match="guidance_scale=3"):
        cell.call(pipe, len(REFINED))


@pytest.mark.parametrize(
    "pipe", [object(), None, torch.nn.Linear(1, 1)], ids=["object", "None", "module"]
)
def test_what_is_no_pipeline_is_refused(pipe):
    for call in (lambda: enable(pipe, plan="AB2:4"), lambda: disable(pipe), lambda: summary(pipe)):
        with pytest.raises(ValueError, match="must be a diffusers pipeline"):
            call()


def test_two_pipelines_of_one_network_are_not_both_enabled():
    cell, pipe = own_sd3()
    other = CELLS["SD3 img2img"].build(EULER())
    other.transformer = pipe.transformer
    probe = Probe()
    enable(pipe, plan=REFINED, refiner=probe)
    with pytest.raises(ValueError, match=r"has a refiner already.*disable that one first"):
        enable(other, plan=REFINED, refiner=Probe())
    cell.call(pipe, len(REFINED))
    assert len(probe.seen) == REFINED.nfe["refiner"]


def test_a_network_changed_after_enable_is_refused():
    cell, pipe = own_sd3()
    enable(pipe, plan=REFINED, refiner=Probe())
    pipe.transformer = own_sd3()[1].transformer
    with pytest.raises(ValueError, match=r"the network answered.*enable\(pipe, ...\) again"):
        cell.call(pipe, len(REFINED))


def test_a_refiner_refuses_reference_images():
    v, x = torch.zeros(1, 4, 8, 8), torch.zeros(1, 48, 16)
    for name, message, call in (
        ("Qwen-Image", "48 tokens.*4 x 4", {"hidden_states": x, "img_shapes": [[(1, 4, 4)] * 3]}),
        ("Z-Image", "with reference images", {"x": [[v[0].unsqueeze(1)]]}),
    ):
        pipe = CELLS[name].build(EULER())
        enable(pipe, plan=REFINED, refiner=Probe())
        pipe.scheduler.set_timesteps(len(REFINED))
        state = call.get("hidden_states", v)
        for t in pipe.scheduler.timesteps[:2]:
            state = pipe.scheduler.step(torch.ones_like(state), t, state).prev_sample
        with pytest.raises(ValueError, match=message):
            pipe.transformer(**call)
        disable(pipe)


def test_a_plan_with_a_refiner_needs_enable():
    cell = CELLS["SD3"]
    with pytest.raises(ValueError, match="call enable"):
        cell.call(cell.build(FlowTurboScheduler(plan=REFINED)), len(REFINED))
    _, pipe = own_sd3()
    enable(pipe, plan=REFINED, refiner=Probe())
    kept = copy.deepcopy(pipe.scheduler)
    disable(pipe)
    pipe.scheduler = kept
    with pytest.raises(ValueError, match="call enable"):
        cell.call(pipe, len(REFINED))


def test_a_fitted_plan_warns_of_what_it_was_not_fitted_to():
    refiner = small()
    mine = {"refiner": refiner.fingerprint, "guidance": (3.0, 3.0)}
    for made_for, guidance, message in (
        (mine, 3.0, None),
        ({**mine, "refiner": "other"}, 3.0, f"weights other.*not {refiner.fingerprint}"),
        (mine, 5.0, "at guidance 3, not 5"),
    ):
        _, pipe = own_sd3()
        plan = replace(REFINED, info=made_for)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            enable(pipe, plan=plan, refiner=refiner, guidance=guidance)
        said = " ".join(str(w.message) for w in caught)
        assert re.search(message, said) if message else not said


def test_a_refiner_of_an_unknown_family_is_refused_with_the_remedy():
    cell, pipe = own_sd3()

    class Other(type(pipe.transformer)):
        pass

    pipe.transformer.__class__ = Other
    before = dict(vars(pipe))
    with pytest.raises(ValueError, match=r"Other, of no family that refiners.*family=Family"):
        enable(pipe, plan=REFINED, refiner=Probe())
    assert dict(vars(pipe)) == before
    probe = Probe()
    enable(pipe, plan=REFINED, refiner=probe, family=Family(name="other"))
    cell.call(pipe, len(REFINED))
    assert len(probe.seen) == REFINED.nfe["refiner"]


def test_diffusion_unets_are_refused():
    pipe = CELLS["U-Net"].build(diffusers.DDIMScheduler(steps_offset=1, clip_sample=False))
    with pytest.raises(ValueError, match=r"a diffusion, not a flow.*sign=1"):
        enable(pipe)


def test_summary():
    _, pipe = own_sd3()
    assert "FlowMatchEulerDiscreteScheduler, not enabled" in summary(pipe)
    enable(pipe, plan=REFINED, refiner=small(), guidance=3.0)
    text = summary(pipe)
    for part in ("SD3", "4 model + 2 refiner evaluations", "VelocityRefiner of", "million"):
        assert part in text
    disable(pipe)
    enable(pipe)
    assert "plan: AB2, one evaluation for each" in summary(pipe)

"""The node for ComfyUI, against its interface of samplers, which stands here as documented."""

import importlib.util
import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fields import mixture

import flowturbo as ft

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
FITTED = Path(ft.__file__).parent / "models" / "bundled" / "emoji" / "plans" / "light.json"


class CONST:
    """How ComfyUI samples flow models."""

    def noise_scaling(self, sigma, noise, image):
        return sigma * noise + (1 - sigma) * image

    def calculate_denoised(self, sigma, output, x):
        return x - output * sigma.view(-1, *[1] * (x.ndim - 1))


class EPS:
    """And diffusion models."""

    noise_scaling = CONST.noise_scaling


class Network:
    """A model of ComfyUI, which predicts the derivative by the noise level."""

    def __init__(self, sampling):
        self.model_sampling = sampling
        self.levels = []

    def apply_model(self, x, sigma, scale):
        assert sigma.shape == (len(x),)
        self.levels.append(sigma)
        v = scale * mixture(x.double(), 1 - sigma.double()).to(x.dtype)
        return self.model_sampling.calculate_denoised(sigma, -v, x)


class Wrapped:
    """What is around it, and called by samplers."""

    def __init__(self, inner_model, call):
        self.inner_model, self.call = inner_model, call

    def __call__(self, x, sigma, denoise_mask=None, scale=1.0):
        return self.call(x, sigma, scale=scale)


class KSAMPLER:
    """Calls the function of a sampler."""

    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image):
        scaling = model_wrap.inner_model.model_sampling.noise_scaling
        return self.sampler_function(
            Wrapped(model_wrap, model_wrap),
            scaling(sigmas[0], noise, latent_image),
            sigmas,
            extra_args={**extra_args, "denoise_mask": None},
            callback=callback,
            disable=True,
            **self.extra_options,
        )


@pytest.fixture
def node(monkeypatch):
    """The node as ComfyUI loads it."""
    for name, parts in {
        "comfy": {},
        "comfy.samplers": {"KSAMPLER": KSAMPLER},
        "comfy.model_sampling": {"CONST": CONST},
    }.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_flowturbo", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, package)
    spec.loader.exec_module(package)
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return package.NODE_CLASS_MAPPINGS["FlowTurboSampler"]()


NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))


def sampled(sampler, sigmas, *, network=None, scale=1.0, callback=None, image=IMAGE):
    network = Network(CONST()) if network is None else network
    guider = Wrapped(network, network.apply_model)
    return sampler.sample(guider, sigmas, {"scale": scale}, callback, NOISE, image)


def field(scale=1.0):
    return lambda x, t, cond: scale * mixture(x.double(), t.double()).to(x.dtype)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:plan .fitted 6. was fitted")
@pytest.mark.parametrize("plan", ["E8", "AB2:8@3", "UNIPC2:8@3", "MID:4", str(FITTED)])
def test_the_result_is_that_of_our_loop(node, plan):
    sampler, sigmas = node.make(plan)
    table = ft.Plan.load(plan) if plan.endswith("json") else ft.Plan.parse(plan)
    network = Network(CONST())
    close(sampled(sampler, sigmas, network=network, scale=0.9), ft.sample(table, field(0.9), NOISE))
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, torch.tensor(1 - table.times).float())
    assert torch.equal(torch.stack(network.levels)[:, 0], sigmas[:-1])


def test_a_network_is_called_with_the_times_of_its_plan(node, tmp_path):
    table = ft.Plan.parse("AB2:4")
    table = replace(table, model_times=table.model_times * 0.9)
    table.save(tmp_path / "plan.json")
    network = Network(CONST())
    result = sampled(*node.make(str(tmp_path / "plan.json")), network=network)
    close(result, ft.sample(table, field(), NOISE))
    close(torch.stack(network.levels)[:, 0], torch.tensor(1 - table.model_times).float())


def test_image_to_image(node):
    sampler, sigmas = node.make("AB2:8@3", denoise=0.6)
    start = 0.4 * IMAGE + 0.6 * NOISE
    expected = ft.sample(ft.Plan.parse("AB2:8@3").restrict(0.4), field(), start)
    assert sigmas[0] == torch.tensor(0.6)
    close(sampled(sampler, sigmas), expected)


def test_callbacks_see_each_evaluation(node):
    sampler, sigmas = node.make("AB2:5@3")
    seen = []
    sampled(sampler, sigmas, callback=seen.append)
    assert [step["i"] for step in seen] == [0, 1, 2, 3, 4]
    assert [step["sigma"] for step in seen] == [*sigmas[:-1]]
    for step in seen:
        v = field()(step["x"], 1 - step["sigma"], None)
        close(step["denoised"], step["x"] + step["sigma"] * v)


def test_a_file_that_is_written_anew_is_read_anew(node, tmp_path):
    path = tmp_path / "plan.json"
    digests = set()
    for text in ("AB2:4", "AB2:5"):
        ft.Plan.parse(text).save(path)
        digests.add(node.IS_CHANGED(str(path)))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("H1P1R1", r"'H1P1R1' has 2 refiner evaluations, and ComfyUI has one model"),
        ("AB2:FFC", r"'AB2:FFC' treats the branches of guidance apart \(rows C\)"),
        ("H4", r"'H4' evaluates at noise level 0"),
        ("Q4", r"Q4"),
        ("missing.json", r"missing\.json"),
    ],
)
def test_plans_that_cannot_run_are_refused(node, plan, message):
    with pytest.raises(ValueError, match=message) as caught:
        node.make(plan)
    assert "\n" not in str(caught.value)


def test_backward_plans_are_refused(node, tmp_path):
    ft.Plan.parse("AB2:4", direction="backward").save(tmp_path / "back.json")
    with pytest.raises(ValueError, match=r"runs from data to noise"):
        node.make(str(tmp_path / "back.json"))


def test_other_noise_levels_and_models_are_refused(node):
    sampler, sigmas = node.make("AB2:4")
    for others in (sigmas[1:], sigmas + 0.01):
        with pytest.raises(ValueError, match=r"not those of plan 'AB2:4': connect the SIGMAS"):
            sampled(sampler, others)
    with pytest.raises(ValueError, match=r"the model is sampled as EPS, which is not a flow"):
        sampled(sampler, sigmas, network=Network(EPS()))


def test_the_example_is_a_workflow_of_the_node(node):
    made = json.loads((FOLDER / "example_workflows/flowturbo_sampler.json").read_text("utf-8"))
    nodes = {entry["id"]: entry for entry in made["nodes"]}
    assert len(made["links"]) == made["last_link_id"] > 0
    for link, source, output, target, slot, kind in made["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in out["links"]
        assert link == into["link"]
        assert kind == out["type"] == into["type"]
    assert all(slot["link"] for entry in nodes.values() for slot in entry["inputs"])
    (own,) = [entry for entry in nodes.values() if entry["type"] == "FlowTurboSampler"]
    assert [output["type"] for output in own["outputs"]] == [*node.RETURN_TYPES]
    assert len(own["widgets_values"]) == len(node.INPUT_TYPES()["required"])
    _, sigmas = node.make(*own["widgets_values"])
    assert len(sigmas) == 9


def test_the_registry_is_told_the_version():
    about = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))
    assert about["project"]["version"] == ft.__version__
    assert about["project"]["dependencies"] == ["flowturbo"]
    assert {"PublisherId", "DisplayName"} <= about["tool"]["comfy"].keys()

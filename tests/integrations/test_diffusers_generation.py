"""Models of this library as a pipeline of diffusers: the images of `flowturbo.generate`."""

import shutil

import numpy as np
import pytest
import torch
from autoencoders import folder, tiny

import flowturbo as ft
from flowturbo.images import to_pil
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.codec_entry import latent_entry
from flowturbo.models.sit import SiT, SiTConfig

diffusers = pytest.importorskip("diffusers")

from flowturbo.integrations.diffusers import FlowTurboPipeline  # noqa: E402


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def emoji():
    return quiet(FlowTurboPipeline.from_model("emoji"))


@pytest.fixture(scope="module")
def classes(digits):
    return quiet(FlowTurboPipeline.from_model(digits))


@pytest.fixture(scope="module")
def words(text_model):
    return quiet(FlowTurboPipeline.from_model(text_model))


def same(images, others):
    assert len(images) == len(others) > 0
    assert all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, others, strict=True)
    )


def test_images_are_those_of_generate(emoji):
    prompts = ["red apple, flat style", "tiger, noto style"]
    expected = ft.generate(ft.load("emoji"), prompts, seed=4)
    same(emoji(prompts, generator=seeded(4, 5)).images, expected)


def test_one_generator_draws_the_noise_of_a_seed(words):
    expected = ft.generate(ft.load(words.model.model.folder), ["red apple"], seed=4)
    same(words("red apple", generator=seeded(4)[0]).images, expected)


def test_all_that_generate_takes(emoji):
    model, options = emoji.model.model, {"plan": "fast", "guidance": 2.0, "negative": "tiger"}
    expected = ft.generate(model, ["red apple", "red apple"], seed=0, **options)
    made = emoji(
        "red apple",
        negative_prompt="tiger",
        guidance_scale=2.0,
        num_images_per_prompt=2,
        generator=seeded(0, 1),
        plan="fast",
    )
    assert model.plans["fast"].nfe["refiner"]
    same(made.images, expected)


@pytest.mark.parametrize("labels", [[7, 3], ["7", "3"], torch.tensor([7, 3])])
def test_class_labels(classes, labels):
    expected = ft.generate(classes.model.model, ["7", "3"], plan="E3", seed=0)
    made = classes(class_labels=labels, plan="E3", generator=seeded(0, 1)).images
    same(made, expected)
    assert made[0].mode == "L"


def test_class_labels_are_indices_of_labels(text_model):
    network = ft.load("digits").network
    names = [str(9 - i) for i in range(10)]
    card = {"name": "reversed", "condition": {"kind": "class", "labels": names}}
    pipe = quiet(FlowTurboPipeline.from_model(ft.Model(network, card)))
    by_index = pipe(class_labels=[2], plan="E2", generator=seeded(0)).images
    same(by_index, pipe("7", plan="E2", generator=seeded(0)).images)


def test_output_types(classes):
    x0 = ft.noise.draw([0, 1], classes.model.model.shape)
    made = {
        kind: classes(class_labels=[7, 3], latents=x0, plan="E3", output_type=kind)
        for kind in ("latent", "pt", "np", "pil")
    }
    model = classes.model.model
    expected = ft.sample(
        "E3", model, x0, model.condition(["7", "3"]), guidance=model.defaults["guidance"]
    )
    assert torch.equal(made["latent"].images, expected)
    assert torch.equal(made["pt"].images, model.decode(expected))
    assert made["np"].images.shape == (2, 32, 32, 1)
    assert np.array_equal(made["np"].images, made["pt"].images.permute(0, 2, 3, 1).numpy())
    same(made["pil"].images, to_pil(made["pt"].images))
    (images,) = classes(class_labels=[7, 3], latents=x0, plan="E3", return_dict=False)
    same(images, made["pil"].images)


def test_images_of_a_prompt_follow_one_another(words):
    both = ["red apple", "tiger"]
    negative = ["pizza", "octopus"]
    x0 = ft.noise.draw(range(4), words.model.model.shape)
    made = words(
        both, negative_prompt=negative, num_images_per_prompt=2, latents=x0, output_type="latent"
    ).images
    for i in range(2):
        rows = slice(2 * i, 2 * i + 2)
        one = words([both[i]] * 2, negative_prompt=negative[i], latents=x0[rows])
        same(to_pil(words.model.model.decode(made[rows])), one.images)


def test_without_prompts_there_are_no_images(words):
    assert words([], negative_prompt=[]).images == []


def test_number_of_evaluations(words, tmp_path):
    call = lambda **options: words("tiger", generator=seeded(0), output_type="pt", **options).images
    assert torch.equal(call(num_inference_steps=5), call(plan="AB2:5@1.6"))
    assert torch.equal(call(num_inference_steps=1), call(plan="E1"))
    ft.Plan.parse("AB2:5@1.6").save(tmp_path / "plan.json")
    same_plan = call(plan=str(tmp_path / "plan.json"), num_inference_steps=5)
    assert torch.equal(same_plan, call(num_inference_steps=5))
    with pytest.raises(ValueError, match=r"num_inference_steps=4, and plan 'AB2:5@1.6' has 5"):
        call(plan="AB2:5@1.6", num_inference_steps=4)


def test_callbacks_see_and_replace_the_state(words):
    seen, plan = [], ft.Plan.parse("AB2:3@1.6")

    def callback(pipe, i, t, tensors):
        assert pipe is words
        seen.append((i, float(t), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 2 else {}

    made = words(
        "tiger",
        plan=plan,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "predicted"],
    )
    assert [i for i, *_ in seen] == [0, 1, 2]
    assert [names for *_, names in seen] == [["latents", "predicted"]] * 3
    np.testing.assert_allclose([t for _, t, _ in seen], 1000 * (1 - plan.times[:3]))
    assert not made.images.any()


def test_it_is_a_pipeline_of_diffusers(words, capsys):
    assert isinstance(words, diffusers.DiffusionPipeline)
    assert [*words.components] == ["model"]
    own = FlowTurboPipeline(**words.components)
    own.set_progress_bar_config(desc="drawing")
    own("tiger", plan="E3")
    assert "drawing: 100%" in capsys.readouterr().err
    folder = words.model.model.folder
    half = quiet(FlowTurboPipeline.from_model(folder)).to("cpu", torch.bfloat16)
    assert half.dtype == half.model.model.dtype == torch.bfloat16
    expected = ft.generate(ft.load(folder, dtype=torch.bfloat16), ["tiger"], seed=0)
    same(half("tiger", generator=seeded(0)).images, expected)


def test_a_folder_of_diffusers(classes, tmp_path):
    classes.save_pretrained(tmp_path / "pipe")
    loaded = quiet(FlowTurboPipeline.from_pretrained(tmp_path / "pipe"))
    call = lambda pipe: pipe(class_labels=[7, 3], plan="fast", generator=seeded(0, 1)).images
    same(call(loaded), call(classes))
    assert ft.load(tmp_path / "pipe" / "model").card == classes.model.model.card
    assert {*loaded.model.model.plans} == {"fast", "balanced", "best"}
    half = FlowTurboPipeline.from_pretrained(tmp_path / "pipe", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    quiet(half).save_pretrained(tmp_path / "again")  # as it was read
    again = quiet(FlowTurboPipeline.from_pretrained(tmp_path / "again"))
    same(call(again), call(classes))


def test_a_folder_with_an_autoencoder(tmp_path):
    home, config = tmp_path / "latent", SiTConfig(size=4, channels=4, patch=2, width=16, depth=1)
    torch.manual_seed(0)
    folder(home / "vae", tiny())
    save_folder(home, SiT(config), {"codec": latent_entry(home / "vae", home)})
    pipe = quiet(FlowTurboPipeline.from_model(home))
    pipe.save_pretrained(tmp_path / "pipe")
    shutil.rmtree(home)
    loaded = quiet(FlowTurboPipeline.from_pretrained(tmp_path / "pipe"))
    loaded.save_pretrained(tmp_path / "pipe")  # onto itself
    x0 = ft.noise.draw([0], (4, 4, 4))
    (image,) = loaded(latents=x0, plan="E2").images
    assert image.size == (8, 8)
    assert torch.equal(
        *(p(latents=x0, plan="E2", output_type="latent").images for p in (pipe, loaded))
    )


def test_what_cannot_be_saved_is_refused(tmp_path):
    pipe = FlowTurboPipeline.from_model("digits")
    with torch.no_grad():
        next(pipe.model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"'digits' has changed since .*digits: write its network"):
        pipe.save_pretrained(tmp_path)
    own = FlowTurboPipeline.from_model(ft.Model(ft.load("digits").network, {"name": "mine"}))
    with pytest.raises(ValueError, match=r"'mine' has no folder: write its network"):
        own.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, r"prompt=None: model 'words' needs it"),
        ({"class_labels": [1]}, r"prompt='tiger' and class_labels=\[1\]: pass one"),
        ({"prompt": None, "class_labels": [1]}, r"'words' is not class-conditional"),
        ({"generator": seeded(0, 1)}, r"generator: a list of 2 for 1 images"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"latents=.*must be a tensor \(1, 3, 8, 8\)"),
        ({"output_type": "pils"}, r"output_type='pils': must be one of .*did you mean"),
        ({"negative_prompt": ["tiger"] * 3}, r"negative_prompt: a list of 3 for 1 prompts"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt=0: must be a whole number"),
        ({"num_inference_steps": 0}, r"num_inference_steps=0: must be a whole number"),
        ({"guidance_scale": "high"}, r"guidance_scale='high': must be a finite number"),
        ({"plan": "Q9"}, r"Q9"),
        (
            {"callback_on_step_end_tensor_inputs": ["noise_pred"]},
            r"callback_on_step_end_tensor_inputs='noise_pred': must be one of 'latents', 'pred",
        ),
    ],
)
def test_bad_arguments_are_refused(words, options, message):
    with pytest.raises(ValueError, match=message):
        words(**{"prompt": "tiger", **options})


def test_bad_labels_and_models_are_refused(classes):
    with pytest.raises(ValueError, match=r"class_labels=None: model 'digits' needs it"):
        classes()
    with pytest.raises(ValueError, match=r"class_labels=10: must be a whole number from 0 to 9"):
        classes(class_labels=[10])
    with pytest.raises(ValueError, match=r"dtype: the model is loaded already"):
        FlowTurboPipeline.from_model(classes.model.model, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"did you mean 'digits'"):
        FlowTurboPipeline.from_model("digts")

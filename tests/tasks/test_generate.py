"""`ft.generate`: pictures from labels, each from its own seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.guidance import Guidance
from flowturbo.models.checkpoint import save_folder
from flowturbo.refiner import PaperRefiner, save_refiner
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.refiner.resolve import FALLBACK_PLAN, resolve_plan


def test_pictures_are_pil_images_of_the_models_size(digits):
    images = ft.generate(digits, ["7", 3], plan="E2", seed=0)
    assert [type(i) for i in images] == [Image.Image] * 2
    assert [i.size for i in images] == [(32, 32)] * 2
    assert images[0].mode == "L"


def test_a_picture_depends_on_its_seed_and_prompt_alone(digits):
    """In any batch: the same to 1 of 255 levels."""
    prompts = ["7", "3", "0", "5", "1"]
    whole = ft.generate(digits, prompts, plan="AB2:4", seed=10)
    split = ft.generate(digits, prompts, plan="AB2:4", seed=10, batch=2)
    for i, prompt in enumerate(prompts):
        alone = ft.generate(digits, [prompt], plan="AB2:4", seed=10 + i)[0]
        for other in (whole[i], split[i]):
            assert abs(np.asarray(alone, int) - np.asarray(other, int)).max() <= 1


def test_states_of_a_batch_equal_those_drawn_alone(digits):
    """The stated tolerance on the state: 1e-4 in float32."""
    x0 = ft.noise.draw(range(4), digits.shape)
    cond = digits.condition(["1", "2", "3", "4"])
    plan = ft.Plan.parse("AB2:4")
    batch = ft.sample(plan, digits, x0, cond, guidance=2.0)
    for i in range(4):
        alone = ft.sample(plan, digits, x0[i : i + 1], cond[i : i + 1], guidance=2.0)
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=0, atol=1e-4)


def test_defaults_come_from_the_card(digits):
    default = ft.generate(digits, ["4"])[0]
    said = ft.generate(digits, ["4"], **digits.defaults)[0]
    assert default.tobytes() == said.tobytes()


def test_negative_prompt_and_unconditional_pictures(digits):
    plain, away, free = (
        ft.generate(digits, [p], plan="E3", negative=n)[0].tobytes()
        for p, n in (("4", None), ("4", "9"), ("", None))
    )
    assert len({plain, away, free}) == 3
    same = ft.generate(digits, ["4"], plan="E3", negative="")[0].tobytes()
    assert same == plain


def test_callback_sees_every_evaluation(digits):
    seen: list[ft.Step] = []
    ft.generate(digits, ["1"] * 3, plan="H1P1", batch=2, callback=lambda s: seen.append(s))
    assert [s.index for s in seen] == [0, 1, 2] * 2
    assert seen[0].x1.shape == (2, 1, 32, 32)


def test_refused(digits):
    with pytest.raises(ValueError, match="batch=0"):
        ft.generate(digits, ["1"], batch=0)
    with pytest.raises(ValueError, match="refiner"):
        ft.generate(digits, ["1"], plan="E1R1")
    with pytest.raises(ValueError, match="not finite"):
        ft.generate(digits, ["1"], plan="E2", guidance=1e30)
    assert ft.generate(digits, []) == []


def test_plans_and_refiner_that_came_with_a_model_are_used_by_name(tiny, tmp_path):
    save_folder(tmp_path, tiny, {"condition": {"kind": "class", "labels": list("abcde")}})
    model = ft.load(tmp_path)
    model.decode = lambda x: x[:, :1].sigmoid()
    ft.Plan.parse("H1P1R1").save(tmp_path / "plans" / "fast.json")
    assert list(ft.load(tmp_path).plans) == ["fast"]
    with pytest.raises(ValueError, match="refiner=None"):
        ft.generate(model, ["a"], plan="fast")
    save_refiner(tmp_path, PaperRefiner.from_model(model), model)
    named = ft.generate(model, ["a"], plan="fast")[0]
    refiner = ft.load_refiner(tmp_path, model)
    said = ft.generate(model, ["a"], plan=ft.Plan.parse("H1P1R1"), refiner=refiner)[0]
    assert named.tobytes() == said.tobytes()
    with pytest.raises(ValueError, match=r"'fats': .* no such plan; did you mean 'fast'"):
        ft.generate(model, ["a"], plan="fats")
    with pytest.raises(ValueError, match=r"'AB9:4'.*; or a plan of .*: fast$"):
        ft.generate(model, ["a"], plan="AB9:4")


def test_a_default_fitted_at_another_guidance_gives_way_to_a_plain_solver(tiny, tmp_path):
    usual = {"plan": "fast", "guidance": 2.0}
    card = {"condition": {"kind": "class", "labels": list("abcde")}, "defaults": usual}
    save_folder(tmp_path, tiny, card)
    model = ft.load(tmp_path)
    fitted = ft.Plan.parse("AB2:4").with_info({"guidance": [2.0, 2.0]})
    (tmp_path / "plans").mkdir()
    fitted.save(tmp_path / "plans" / "fast.json")
    assert resolve_plan(model, None) == resolve_plan(model, None, 2.5) == fitted
    assert resolve_plan(model, None, 4.0) == ft.Plan.parse(FALLBACK_PLAN)
    assert resolve_plan(model, "fast", 4.0) == fitted


def test_guidance_of_the_first_channels_is_that_of_the_wrapper(tiny, tmp_path):
    save_folder(tmp_path, tiny, {"condition": {"kind": "class", "labels": list("abcde")}})
    model = ft.load(tmp_path)
    x, cond = ft.noise.draw([0, 1], model.shape), model.condition(["a", "e"])
    one = ft.sample("AB2:3", model, x, cond, guidance=3.0, guidance_channels=1)
    assert torch.equal(one, ft.sample("AB2:3", Guidance(model, 3.0, channels=1), x, cond))
    every = ft.sample("AB2:3", model, x, cond, guidance=3.0)
    assert not torch.allclose(one, every, atol=1e-3)
    assert torch.equal(every, ft.sample("AB2:3", model, x, cond, guidance=3.0, guidance_channels=2))
    for channels in (0, 3, -1, 1.0, True, "2"):
        with pytest.raises(ValueError, match=r"guidance_channels=.*, 1 to the 2 channels"):
            ft.sample("E1", model, x, cond, guidance=3.0, guidance_channels=channels)


def test_a_refiner_for_guidance_of_all_channels_is_not_used_with_fewer(digits):
    refiner = VelocityRefiner.from_model(digits, (1.0, 4.0))
    told = dict(plan=ft.Plan.parse("AB2:FFR@1.6"), guidance=2.0, refiner=refiner)
    assert ft.generate(digits, ["1"], **told)
    with pytest.raises(ValueError, match="guided in all channels; leave guidance_channels out"):
        ft.generate(digits, ["1"], guidance_channels=1, **told)


def test_a_model_of_states_that_are_no_images_is_refused():
    flat = torch.nn.Linear(2, 2)
    flat.shape = (2,)
    model = ft.Model(flat, {"name": "flat"})
    with pytest.raises(ValueError, match=r"states are \(2,\), and images are \(C, H, W\)"):
        ft.generate(model, [""])

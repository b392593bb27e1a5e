"""Editing: what is kept, what is counted, what is refused; on bundled and on made-up models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.tasks.inpainting import _spread

NAMES = ["red apple", "tiger"]


class Pull(torch.nn.Module):
    """From noise to one grey level a label, of grey images."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor([-0.5, 0.5, 0.0]))

    def forward(self, x, t, cond):
        return (self.levels[cond][:, None, None, None] - x) * 0.5

    def null_condition(self, cond):
        return torch.full_like(cond, 2)


@pytest.fixture(scope="module")
def words(text_model):
    return ft.load(text_model)


@pytest.fixture
def pull():
    about = {"kind": "class", "labels": ["dark", "light"]}
    return ft.Model(Pull().eval(), {"name": "pull", "condition": about})


@pytest.fixture(scope="module")
def photo():
    """RGB, wider than high, of other size than any model's images."""
    rows = torch.linspace(0, 1, 20)[:, None].expand(20, 30)
    columns = torch.linspace(0, 1, 30).expand(20, 30)
    array = torch.stack([rows, columns, 1 - rows], 2).mul(255).byte().numpy()
    return Image.fromarray(array)


def pixels(image):
    return np.asarray(image).astype(int)


def grey(level=0.0, side=8):
    return Image.new("L", (side, side), round(255 * (level + 1) / 2))


def test_from_noise_alone_it_generates_and_without_any_it_returns_the_image(words):
    (source,) = ft.generate(words, ["tiger"], seed=5)
    made = ft.img2img(words, source, NAMES, strength=1.0, plan="AB2:4@1.6", seed=3)
    whole = ft.generate(words, NAMES, plan="AB2:4@1.6", seed=3)
    assert [i.tobytes() for i in made] == [i.tobytes() for i in whole]
    assert (made.evaluations, made.passes) == (4, 8)
    same = ft.img2img(words, source, "red apple", strength=0.0)
    assert same[0].tobytes() == source.tobytes()
    assert (same.evaluations, same.passes) == (0, 0)
    assert same.images == list(same)


def test_a_table_is_restricted_and_notation_runs_whole(words):
    (source,) = ft.generate(words, ["tiger"], seed=5)
    whole = ft.img2img(words, source, "tiger", strength=0.5, plan="E8", guidance=1.0)
    cut = ft.img2img(words, source, "tiger", strength=0.5, plan=ft.Plan.euler(8), guidance=1.0)
    assert (whole.evaluations, cut.evaluations) == (8, 4)


def test_the_noise_of_an_image_is_that_of_its_seed(words):
    (source,) = ft.generate(words, ["tiger"], seed=5)
    pair = ft.img2img(words, source, NAMES, seed=7)
    alone = ft.img2img(words, source, NAMES[1], seed=8)
    assert np.abs(pixels(pair[1]) - pixels(alone[0])).max() <= 1


def test_there_and_back_an_image_returns(digits):
    sources = ft.generate(digits, list("0123"), plan="AB2:16@1.6", guidance=1.0)
    same = ft.edit(
        digits, sources, list("0123"), list("0123"), guidance=1.0, keep=0.0, plan="AB2:8@1.6"
    )
    off = np.array([pixels(a) - pixels(b) for a, b in zip(same, sources, strict=True)]) / 127.5
    assert np.sqrt((off**2).mean()) < 0.1
    assert (same.evaluations, same.passes) == (16, 16)


def test_the_edit_is_what_is_asked_for(pull):
    """Solved by hand: the levels of the prompts, and how fast states go there."""
    (made,) = ft.edit(pull, grey(0.2), "light", "dark", keep=0.25, plan="RK4:8", guidance=1.0)
    noise = -0.5 + (0.2 + 0.5) * np.exp(0.5 * 0.75)
    expected = 0.5 + (noise - 0.5) * np.exp(-0.5 * 0.75)
    assert abs(pixels(made) - 127.5 * (expected + 1)).max() < 2
    (flow,) = ft.edit(pull, grey(0.2), "light", "dark", method="flowedit", keep=0.25, plan="RK4:8",
                      guidance=1.0)  # fmt: skip
    whole = 1 - 0.25**1.1  # of the path; velocities differ by (1 - (z - x)) / 2
    moved = 0.2 + (1 - np.exp(-0.5 * whole)) / 0.5 * 0.5
    assert abs(pixels(flow) - 127.5 * (moved + 1)).max() < 2


def test_flowedit_to_the_same_prompt_changes_nothing(words):
    (source,) = ft.generate(words, ["tiger"], seed=5)
    made = ft.edit(words, source, "tiger", "tiger", method="flowedit", guidance=1.0, keep=0.1)
    assert made[0].tobytes() == source.tobytes()
    guided = ft.edit(words, source, NAMES, "tiger", method="flowedit", keep=0.1, plan="E5")
    assert (guided.evaluations, guided.passes) == (10, 15)  # three branches


@pytest.mark.parametrize("method", ["inversion", "flowedit", "sdedit"])
def test_kept_whole_it_is_the_image(words, method):
    (source,) = ft.generate(words, ["tiger"], seed=5)
    made = ft.edit(words, source, "red apple", "tiger", method=method, keep=1.0)
    assert made[0].tobytes() == source.tobytes()


def test_an_exact_inversion_is_undone_to_rounding(words):
    """On a network that was never trained, whose velocities no solver follows in so few steps."""
    (source,) = ft.generate(words, ["tiger"], seed=5)
    few = dict(guidance=1.0, keep=0.0, plan="AB2:8")
    (same,) = ft.edit(words, source, "tiger", "tiger", exact=True, **few)
    assert np.abs(pixels(same) - pixels(source)).max() <= 1
    (other,) = ft.edit(words, source, "red apple", "tiger", exact=True, **few)
    assert other.tobytes() != source.tobytes()
    made = ft.edit(words, source, "red apple", "tiger", exact=True, plan="AB2:4")
    assert (made.evaluations, made.passes) == (7, 10)  # one velocity is known


def test_an_inversion_ends_where_it_is_told_and_leads_back(pull):
    x = ft.invert(pull, grey(0.3), "dark", plan="RK4:8", until=0.25)
    expected = -0.5 + (pixels(grey(0.3))[0, 0] / 127.5 - 1 + 0.5) * np.exp(0.5 * 0.75)
    torch.testing.assert_close(x, torch.full((1, 1, 8, 8), float(expected)), rtol=0, atol=1e-4)
    back = ft.sample(ft.Plan.parse("RK4:8", start=0.25), pull, x, pull.condition(["dark"]))
    assert (pull.decode(back) * 255).round().unique().tolist() == [pixels(grey(0.3))[0, 0]]


@pytest.fixture
def inverse(pull):
    """A plan of a round trip until t=0.25 on `pull`, which two evaluations do exactly."""
    return ft.tune(pull, nfe=2, trajectories=16, guidance=1.0, direction="round trip", until=0.25)


def test_a_plan_of_a_round_trip_leads_there_and_its_own_solver_back(pull, inverse, tmp_path):
    few = dict(keep=0.25, guidance=1.0)
    (same,) = ft.edit(pull, grey(0.9), "dark", "dark", plan=inverse, **few)
    assert same.tobytes() == grey(0.9).tobytes()
    (off,) = ft.edit(pull, grey(0.9), "dark", "dark", plan="AB2:2@1.6", **few)
    assert off.tobytes() != same.tobytes()
    inverse.save(tmp_path / "inverse.json")
    made = ft.edit(pull, grey(0.9), "light", "dark", plan=str(tmp_path / "inverse.json"), **few)
    assert made.evaluations == 4
    x = ft.invert(pull, grey(0.9), "dark", plan=inverse, until=0.25)
    to_light = ft.sample(ft.Plan.parse("AB2:2@1.6", start=0.25), pull, x, pull.condition(["light"]))
    assert abs(pixels(made[0])[0, 0] - 255 * float(pull.decode(to_light)[0, 0, 0, 0])) < 1


def test_a_plan_that_leads_elsewhere_is_refused(pull, inverse):
    ask = lambda **more: ft.edit(pull, grey(), "dark", "dark", **more)
    with pytest.raises(ValueError, match=r"leads from t=1 to 0.25, must lead from .* to 0.1; fit"):
        ask(plan=inverse)
    with pytest.raises(ValueError, match=r"'inverse of AB2:2@1\.6'"):
        ask(plan=inverse, keep=0.25, method="flowedit")
    with pytest.raises(ValueError, match="no plan is known that leads back"):
        ask(plan=inverse.with_info({}), keep=0.25)
    with pytest.raises(ValueError, match=r"must lead from .*, t=1, to 0\.5"):
        ft.invert(pull, grey(), plan=inverse, until=0.5)


def test_in_the_size_of_the_input_only_the_middle_changes(words, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    (made,) = ft.img2img(words, tmp_path / "photo.png", "tiger")
    assert made.size == photo.size
    assert made.mode == "RGB"
    before, after = pixels(photo), pixels(made)
    assert (before[:, :5] == after[:, :5]).all()
    assert (before[:, 25:] == after[:, 25:]).all()
    assert (before[:, 5:25] != after[:, 5:25]).any()
    (small,) = ft.img2img(words, photo, "tiger", size="model")
    assert small.size == (8, 8)


MASK = np.zeros((20, 30))
MASK[4:12, 8:18] = 1


@pytest.mark.parametrize("quality", ["standard", "high"])
@pytest.mark.parametrize("size", ["model", "input"])
def test_inpainting_keeps_the_bits_of_other_pixels(words, photo, size, quality):
    made = ft.inpaint(words, photo, MASK, NAMES, size=size, quality=quality)
    known = MASK == 0
    source = photo
    if size == "model":
        source = ft.img2img(words, photo, "tiger", strength=0.0, size="model")[0]
        part = torch.tensor(MASK[None, None, :, 5:25])
        known = torch.nn.functional.adaptive_max_pool2d(part, (8, 8))[0, 0].numpy() == 0
    assert known.mean() > 0.3
    for image in made:
        assert image.size == source.size
        assert (pixels(image)[known] == pixels(source)[known]).all()
        assert (pixels(image)[~known] != pixels(source)[~known]).mean() > 0.3
    assert (made.evaluations, made.passes) == (8, 16)


def test_masks_of_all_kinds_are_the_same(words, photo, tmp_path):
    image = Image.fromarray((MASK * 255).astype(np.uint8))
    image.save(tmp_path / "mask.png")
    kinds = [MASK, MASK.astype(bool), (MASK * 255).astype(np.uint8), torch.tensor(MASK), image,
             image.convert("RGB"), image.convert("1"), tmp_path / "mask.png"]  # fmt: skip
    found = {ft.inpaint(words, photo, m, "tiger", plan="E2")[0].tobytes() for m in kinds}
    assert len(found) == 1


def test_a_feathered_mask_blends_inward(words, photo):
    wide = np.zeros((20, 30))
    wide[2:18, 6:24] = 1
    (hard,) = ft.inpaint(words, photo, wide, "tiger", plan="E4")
    (soft,) = ft.inpaint(words, photo, wide, "tiger", plan="E4", feather=3)
    outside = wide == 0
    assert (pixels(soft)[outside] == pixels(photo)[outside]).all()
    near = lambda image: np.abs(pixels(image) - pixels(photo))[3, 8:22].mean()
    assert near(soft) < 0.5 * near(hard)


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_a_mask_blends_once(words, photo, level):
    """In the model's own size both sizes are the same image."""
    small, mask = photo.resize((8, 8)), np.zeros((8, 8))
    mask[2:6, 3:7] = level
    both = [ft.inpaint(words, small, mask, "tiger", size=s)[0] for s in ("model", "input")]
    assert both[0].tobytes() == both[1].tobytes() != small.tobytes()


def test_nothing_of_what_is_removed_shows_at_the_edge(words):
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (21, 21, 41, 41))
    (made,) = ft.remove(words, image, box=(21, 21, 41, 41))
    assert pixels(made).min() == 255
    (small,) = ft.remove(words, image, box=(21, 21, 41, 41), size="model")
    assert pixels(small).min() > 245  # scaled down, an object rings beyond its edge


def test_a_thin_mask_is_painted(words):
    image = Image.new("RGB", (640, 640), "white")
    mask = np.zeros((640, 640))
    mask[300:302] = 1
    (made,) = ft.inpaint(words, image, mask, "tiger")
    assert (pixels(made)[300:302] != 255).mean() > 0.5
    assert (np.delete(pixels(made), [300, 301], 0) == 255).all()


def test_the_part_that_is_edited_moves_to_the_mask(words):
    wide = Image.new("RGB", (60, 20), "white")
    wide.paste("red", (5, 5, 15, 15))
    (made,) = ft.remove(words, wide, box=(4, 4, 16, 16))
    assert pixels(made).min() > 250


def test_what_is_transparent_in_a_mask_is_not_painted(words, photo):
    strokes = Image.new("RGBA", photo.size)
    strokes.paste("white", (8, 4, 18, 12))
    same = ft.inpaint(words, photo, MASK, "tiger", plan="E2")
    assert ft.inpaint(words, photo, strokes, "tiger", plan="E2")[0].tobytes() == same[0].tobytes()


@pytest.mark.parametrize("task", [
    lambda m, p: ft.img2img(m, p, "tiger", strength=0.0),
    lambda m, p: ft.edit(m, p, "tiger", "tiger", keep=1.0),
])  # fmt: skip
def test_unchanged_it_is_the_input_to_the_bit(words, photo, task):
    assert task(words, photo)[0].tobytes() == photo.tobytes()


def test_one_prompt_goes_with_many_images(words, photo):
    made = ft.img2img(words, [photo, photo.transpose(Image.Transpose.ROTATE_90)], "tiger")
    assert [i.size for i in made] == [(30, 20), (20, 30)]
    assert ft.invert(words, [photo, photo]).shape == (2, 3, 8, 8)
    assert ft.img2img(words, photo, "tiger", plan=None, guidance=1.0).evaluations > 0


def test_a_source_may_have_a_style_of_its_own_or_none(words, photo):
    few = dict(plan="E2", guidance=1.0)
    both = ft.edit(words, photo, "tiger", "tiger", style="noto", **few)
    none = ft.edit(words, photo, "tiger", "tiger", style="noto", source_style="", **few)
    other = ft.edit(words, photo, "tiger", "tiger", style="noto", source_style="flat", **few)
    assert len({i[0].tobytes() for i in (both, none, other)}) == 3


def test_high_quality_in_inference_mode(words, photo):
    with torch.inference_mode():
        made = ft.inpaint(words, photo, MASK, "tiger", quality="high", plan="E2")
    same = ft.inpaint(words, photo, MASK, "tiger", quality="high", plan="E2")
    assert made[0].tobytes() == same[0].tobytes()


def test_plans_of_the_model_paint_too(digits):
    (source,) = ft.generate(digits, ["3"], seed=1)
    mask = np.zeros((32, 32))
    mask[:, 16:] = 1
    made = ft.inpaint(digits, source, mask, "3", plan="balanced")
    assert made.evaluations == digits.plans["balanced"].nfe["model"]
    assert made[0].mode == "L"


def test_colours_are_spread_into_a_hole(words):
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 40, 48)
    hole = torch.zeros(40, 48)
    hole[10:30, 12:33] = 1
    torch.testing.assert_close(
        _spread(ramp * (1 - hole), hole[None, None]), ramp, rtol=0, atol=0.01
    )
    (plain,) = ft.remove(words, Image.new("RGB", (30, 20), "teal"), box=(8, 4, 18, 12))
    assert set(plain.getdata()) == {(0, 128, 128)}


def test_removal_with_a_prompt_is_inpainting_without_guidance(words, photo):
    made = ft.remove(words, photo, prompt="tiger", box=(8, 4, 18, 12), seed=2)
    same = ft.inpaint(words, photo, MASK, "tiger", guidance=1.0, seed=2)
    assert made[0].tobytes() == same[0].tobytes()
    assert (made.evaluations, made.passes) == (8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: ft.img2img(m, p, "tiger", strength=1.5), "strength=1.5: must be"),
        (lambda m, p: ft.img2img(m, 3, "tiger"), "image=3: must be a PIL image or a path"),
        (lambda m, p: ft.img2img(m, "none.png", "tiger"), "none.png: not a readable image"),
        (lambda m, p: ft.img2img(m, [p, p, p], NAMES), "prompt: 2 for 3 of image; give one, or 3"),
        (lambda m, p: ft.img2img(m, p, []), r"prompt=\[\]: give at least one"),
        (lambda m, p: ft.img2img(m, p, "tiger", size="big"), "size='big': must be"),
        (lambda m, p: ft.img2img(m, p, "zzzz"), "zzzz"),
        (lambda m, p: ft.img2img(m, p, "tiger", plan="AB9:8"), "plan 'AB9:8'"),
        (lambda m, p: ft.img2img("emoji", p, "tiger"), r"pass flowturbo\.load\('emoji'\)"),
        (lambda m, p: ft.edit(m, p, "tiger", NAMES), "source_prompt: 2 for 1 images; give one"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", method="magic"), "method='magic': must be"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", keep=-1), "keep=-1: must be"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", plan=ft.Plan.euler(2)),
         "leads from t=0 to 1, must lead from data, t=1, to 0.1"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", plan=ft.Plan.euler(2), exact=True),
         "exact=True, plan=.*takes notation"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", method="sdedit", exact=True), "exact=True, "),
        (lambda m, p: ft.inpaint(m, p, MASK * 0, "tiger"), "is empty; paint it white"),
        (lambda m, p: ft.inpaint(m, p, np.ones((20, 30)), "tiger"), "covers 30 x 20 pixels"),
        (lambda m, p: ft.inpaint(m, [p, p.resize((9, 9))], MASK, "tiger"), "sizes 30 x 20, 9 x 9"),
        (lambda m, p: ft.inpaint(m, p, [[0, 1], [1]], "tiger"),
         "mask=.*: must be an image, a path"),
        (lambda m, p: ft.inpaint(m, p, MASK, "tiger", plan="E2R1"), "refiner"),
        (lambda m, p: ft.inpaint(m, p, MASK, "tiger", quality="high", plan="AB2:FFC"),
         "high.*\\(C\\)"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", method="flowedit", plan="AB2:FFC"),
         "flowedit"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", plan="E2R1"), "backward.*refiner"),
        (lambda m, p: ft.edit(m, p, "tiger", "tiger", exact=True, plan="E1"),
         "takes two evaluations"),
        (lambda m, p: ft.edit(m, p, "tiger", 2.5), "source_prompt=2.5: must be a text"),
        (lambda m, p: ft.img2img(m, p, ["tiger", None]), r"prompt\[1\]=None"),
        (lambda m, p: ft.img2img(m, p, "tiger", seed=-1), "seed=-1: must be a whole number from 0"),
        (lambda m, p: ft.img2img(m, p, "tiger", guidance="a"), "guidance='a': must be"),
        (lambda m, p: ft.img2img(m, p, "tiger", negative=["a"]), "negative=.*: must be a text"),
        (lambda m, p: ft.img2img(m, p, "tiger", strenght=1), "did you mean 'strength'"),
        (lambda m, p: ft.img2img(m, p, "tiger", plan=ft.Plan.parse("E4").until(0.5)), "data, t=1"),
        (lambda m, p: ft.img2img(m, p, "tiger", plan=3), "plan=3: must be a Plan"),
        (lambda m, p: ft.invert(m, p, until=1), "until=1: must be below 1"),
        (lambda m, p: ft.inpaint(m, p, MASK[:5], "tiger"), "mask of 30 x 5: .* 30 x 20"),
        (lambda m, p: ft.inpaint(m, p, MASK * 2, "tiger"),
         r"mask=.*: must be an image, a path, or"),
        (lambda m, p: ft.inpaint(m, p, MASK * np.nan, "tiger"),
         "mask=.*: must be an image, a path, or"),
        (lambda m, p: ft.inpaint(m, p, MASK, "tiger", feather=9),
         "feather=9: must be at most half of the mask, 4 pixels"),
        (lambda m, p: ft.inpaint(m, p, MASK, "tiger", quality="best"), "quality='best'"),
        (lambda m, p: ft.remove(m, p), "mask=None, box=None, click=None: pass one of them"),
        (lambda m, p: ft.remove(m, p, MASK, box=(0, 0, 1, 1)), "pass one of them"),
        (lambda m, p: ft.remove(m, p, box=(0, 0, 1, 1), click=(1, 1)), "pass one of them"),
        (lambda m, p: ft.remove(m, [p, p], click=(1, 1)), "click=.*is for one image, and there"),
        (lambda m, p: ft.remove(m, p, click=(30, 5)), r"click=\(30, 5\): .*the image, 30 x 20"),
        (lambda m, p: ft.remove(m, p, click=(1.5, 5)), r"click=\(1.5, 5\): must be \(x, y\)"),
        (lambda m, p: ft.remove(m, p, click=7), r"click=7: must be \(x, y\), whole"),
        (lambda m, p: ft.remove(m, Image.new("RGB", (9, 9)), click=(4, 4)),
         r"click=\(4, 4\): there is no object"),
        (lambda m, p: ft.remove(m, p, box=(0, 0, 31, 10)), r"box=.*within the image, 30 x 20"),
        (lambda m, p: ft.remove(m, p, box=(5, 0, 5, 10)), r"box=.*within the image"),
        (lambda m, p: ft.remove(m, p, box=(5, 0, 5)),
         r"box=.*: must be \(left, top, right, bottom\), whole"),
        (lambda m, p: ft.remove(m, p.resize((8, 8)), np.ones((8, 8))), "covers the whole image"),
    ],
)  # fmt: skip
def test_refuses(words, photo, call, message):
    with pytest.raises(ValueError, match=message) as end:
        call(words, photo)
    assert "\n" not in str(end.value)


# -- callbacks ----------------------------------------------------------------------------------

CALLS = {
    "inversion": lambda model, image, **kw: ft.edit(
        model, image, "tiger", "red apple", plan="AB2:3", seed=5, **kw
    ),
    "exact": lambda model, image, **kw: ft.edit(
        model, image, "tiger", "red apple", plan="AB2:3", exact=True, **kw
    ),
    "flowedit": lambda model, image, **kw: ft.edit(
        model, image, "tiger", "red apple", plan="AB2:3", method="flowedit", seed=5, **kw
    ),
    "sdedit": lambda model, image, **kw: ft.edit(
        model, image, "tiger", "red apple", plan="AB2:3", method="sdedit", seed=5, **kw
    ),
    "img2img": lambda model, image, **kw: ft.img2img(model, image, "tiger", plan="AB2:3", **kw),
    "inpaint": lambda model, image, **kw: ft.inpaint(
        model, image, half(image), "tiger", plan="AB2:3", **kw
    ),
    "inpaint high": lambda model, image, **kw: ft.inpaint(
        model, image, half(image), "tiger", plan="AB2:3", quality="high", **kw
    ),
    "remove": lambda model, image, **kw: ft.remove(
        model, image, prompt="tiger", box=[0, 0, 9, 9], plan="AB2:3", **kw
    ),
}  # fmt: skip


def half(image):
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, image.width // 2, image.height // 2))
    return mask


@pytest.mark.parametrize("task", CALLS)
def test_a_callback_sees_the_way_to_the_target_and_changes_nothing(words, photo, task):
    seen = []
    plain = CALLS[task](words, photo)
    watched = CALLS[task](words, photo, callback=lambda step: seen.append(step))
    assert [step.index for step in seen] == list(range(3))
    assert all(step.x1.shape == (1, 3, 8, 8) for step in seen)
    assert seen[-1].time == 1
    assert pixels(watched[0]).tolist() == pixels(plain[0]).tolist()


@pytest.mark.parametrize("task", CALLS)
def test_a_state_that_a_callback_returns_takes_the_place_of_the_state(words, photo, task):
    size = "model"
    plain = CALLS[task](words, photo, size=size)
    moved = CALLS[task](words, photo, size=size, callback=lambda step: step.x + 0.5)
    assert pixels(moved[0]).tolist() != pixels(plain[0]).tolist()


def test_what_a_callback_of_inpainting_returns_keeps_the_known_part(words, photo):
    made = CALLS["inpaint"](words, photo, callback=lambda step: torch.zeros_like(step.x))
    known = pixels(half(photo)) == 0
    assert (pixels(made[0])[known] == pixels(photo)[known]).all()


@pytest.mark.parametrize("task", CALLS)
def test_a_callback_that_is_none_is_refused(words, photo, task):
    with pytest.raises(ValueError, match="callback"):
        CALLS[task](words, photo, callback=3)
    with pytest.raises(ValueError, match="callback returned"):
        CALLS[task](words, photo, callback=lambda step: step.x[0])

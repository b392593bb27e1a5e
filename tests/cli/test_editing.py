"""The commands that edit images: any file in, one image or a grid out, and one line if it fails."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.images import read_metadata


@pytest.fixture
def flowturbo(text_model, tmp_path, monkeypatch, capsys):
    """Runs a command on the text model in an empty folder; its status and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        with pytest.raises(SystemExit) as end:
            main([command, *map(str, arguments), "-m", str(text_model), "--device", "cpu"])
        return end.value.code or 0, "".join(capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "in.png")
    mask = np.zeros((20, 30), np.uint8)
    mask[4:12, 8:18] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "in.png"


CALLS = {
    "edit": (["in.png", "red apple", "--from", "tiger"], "8 evaluations (12 passes)"),
    "img2img": (["in.png", "tiger"], "8 evaluations (16 passes)"),
    "inpaint": (["in.png", "tiger", "--mask", "mask.png"], "8 evaluations (16 passes)"),
    "remove": (["in.png", "tiger", "--box", 8, 4, 18, 12], "8 evaluations (8 passes)"),
}


@pytest.mark.parametrize("command", CALLS)
def test_an_image_of_the_same_size_is_written(flowturbo, photo, text_model, command):
    arguments, said = CALLS[command]
    status, text = flowturbo(command, *arguments, "--seed", 3, "-o", "out.png")
    assert (status, text) == (0, f"1 image, {said} each -> out.png\n")
    with Image.open("out.png") as made, Image.open("in.png") as source:
        assert made.size == source.size
        assert made.tobytes() != source.tobytes()
    facts = read_metadata("out.png")
    assert facts["seed"] == "3"
    assert facts["prompt"] in ("red apple", "tiger")
    assert facts["model"].endswith(ft.load(text_model).fingerprint)


def test_candidates_stand_behind_the_source(flowturbo, photo):
    assert flowturbo("img2img", "in.png", "tiger", "-n", 3, "--size", "model")[0] == 0
    with Image.open("edited.png") as grid:
        assert grid.size == (2 * 10 + 2, 2 * 10 + 2)
    how = ["edit", "in.png", "tiger", "--from", "red apple", "-n", 2]
    assert "candidates would be alike" in flowturbo(*how)[1]
    assert flowturbo(*how, "--method", "flowedit")[0] == 0
    with Image.open("edited.png") as grid:
        assert grid.size == (2 * 32 + 2, 2 * 22 + 2)


def saved(mode: str, kind: str, **options: object) -> bytes:
    image = Image.new("RGB", (6, 4), "red")
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 40000, np.uint16))
    elif mode == "RGBA":
        image = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (saved("CMYK", "JPEG"), (6, 4)),
        (saved("I;16", "PNG"), (6, 4)),
        (saved("RGBA", "PNG"), (6, 4)),
        (saved("P", "GIF", transparency=0), (6, 4)),
        (saved("P", "GIF", save_all=True, append_images=[Image.new("P", (6, 4))]), (6, 4)),
        (saved("RGB", "JPEG", exif=EXIF), (4, 6)),
        (saved("1", "PNG"), (6, 4)),
    ],
)
def test_files_of_all_kinds_are_edited(flowturbo, tmp_path, content, size):
    (tmp_path / "in").write_bytes(content)
    assert flowturbo("img2img", "in", "tiger", "--plan", "E1")[0] == 0
    with Image.open("edited.png") as made:
        assert made.size == size
        assert made.mode == "RGB"


def test_an_image_of_one_pixel_is_edited(flowturbo, tmp_path):
    Image.new("RGB", (1, 1)).save("in.png")
    assert flowturbo("img2img", "in.png", "tiger", "--plan", "E1")[0] == 0
    with Image.open("edited.png") as made:
        assert made.size == (1, 1)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("img2img", ["none.png", "tiger"], "none.png: not a readable image"),
        ("img2img", ["in.png", "tiger", "--strength", 2], "strength=2.0: must be"),
        ("img2img", ["in.png", "tiger", "-n", 0], "-n 0: must be from 1 to 64"),
        ("img2img", ["in.png", "tiger", "--size", "big"], "size='big': must be"),
        ("img2img", ["in.png", "tiger", "-o", "out.jpg"], "is written as .png"),
        ("edit", ["in.png", "tiger"], "--from"),
        ("edit", ["in.png", "tiger", "--from", "qqqq"], "qqqq"),
        ("edit", ["in.png", "tiger", "--from", "tiger", "--method", "x"], "method='x': must be"),
        ("inpaint", ["in.png", "tiger", "--mask", "small.png"], "mask of 3 x 3: must be of the"),
        ("inpaint", ["in.png", "tiger", "--mask", "black.png"], "is empty; paint it white"),
        ("inpaint", ["in.png", "tiger", "--mask", "bad.png"], "bad.png: not a readable image"),
        ("remove", ["in.png"], "mask=None, box=None, click=None: pass one"),
        ("remove", ["in.png", "--click", 30, 1], "within the image, 30 x 20"),
        ("remove", ["in.png", "--box", 0, 0, 99, 9], "within the image, 30 x 20"),
    ],
)
def test_bad_input_is_one_line(flowturbo, photo, tmp_path, command, arguments, message):
    Image.new("L", (3, 3), 255).save("small.png")
    Image.new("L", (30, 20)).save("black.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status, text = flowturbo(command, *arguments)
    assert status == 2
    assert message in text
    assert text.count("\n") == 1
    assert not (tmp_path / "edited.png").exists()


def test_malformed_files_are_refused_or_read(tmp_path):
    """Bytes changed, cut or put in at random: an image or one clear error, and nothing else."""
    rng, read, refused = random.Random(0), 0, []
    whole = [saved("RGB", k) for k in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    model = ft.load("digits")
    for _ in range(1000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
            if not data:
                break
        (tmp_path / "in").write_bytes(bytes(data[: rng.randint(1, 2 * len(data))] if data else b""))
        try:
            ft.img2img(model, tmp_path / "in", "3", strength=0.0)
            read += 1
        except ValueError as e:
            refused.append(str(e))
    assert all("not a readable image" in said and "\n" not in said for said in refused)
    assert 50 < read < 950

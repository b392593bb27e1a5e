"""Folders of images: each file is read, refused or named as left out; nothing is lost silently."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowturbo.training import ArrayData, load_data
from flowturbo.training.data import load_images

NFC, NFD = normalize("NFC", "café"), normalize("NFD", "café")


def put(folder: Path, *names: str) -> Path:
    """Pictures of those names, and texts where the name is one of a text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = Image.registered_extensions().get(path.suffix.lower())
        if kind:
            Image.new("RGB", (4, 4), "red").save(path, kind)
        else:
            path.write_text(f"the text of {path.stem}")
    return folder


def test_what_is_trained_on_is_told(tmp_path):
    told = lambda name, *files: load_data(put(tmp_path / name, *files), 4).describe()
    two = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    assert told("classes", *two) == "4 images, 2 classes: cat, dog"
    assert told("flat", "1.png", "2.png") == "2 images, no captions or labels"
    assert told("one", "cat/1.png") == "1 image, 1 class: cat"
    assert told("texts", "1.png", "1.txt") == "1 image with captions (.txt)"
    assert told("more", "1.png", "notes.md", "cat/", ".DS_Store") == (
        "1 image, no captions or labels; left out: .DS_Store, cat, notes.md"
    )
    many = [f"{i:02}/1.png" for i in range(20)]
    assert told("many", *many).endswith(
        "20 classes: " + ", ".join(f"{i:02}" for i in range(12)) + ", ... (20 in all)"
    )


def test_all_that_pillow_reads_is_read(tmp_path):
    names = ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "TIFF", "ppm", "tga"]
    names += ["ico", "jp2", "apng", "avif", "qoi"]
    put(tmp_path, *(f"dog/{i}.{suffix}" for i, suffix in enumerate(names)), "cat/1.png")
    os.rename(tmp_path / "dog/0.png", tmp_path / "dog/no-suffix")
    os.rename(tmp_path / "dog/1.jpg", tmp_path / "dog/1.jpg_large")
    os.rename(tmp_path / "dog/3.jpe", tmp_path / "dog/3.png")  # by its content
    data = load_data(tmp_path, 4)
    assert data.describe() == f"{len(names) + 1} images, 2 classes: cat, dog"
    assert (data.images[:, 0] > 240).all()


@pytest.mark.parametrize("name", ["a.heic", "a.SVG", "a.eps", "a.cr2"])
def test_pictures_that_are_not_read_are_refused(tmp_path, name):
    put(tmp_path, "1.png")
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(ValueError, match=f"{name}: images in .* are not read; convert it"):
        load_data(tmp_path, 4)


def test_no_picture_is_given_to_another_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran it"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EOF\n")
    with pytest.raises(ValueError, match=r"a.png: not a readable image"):
        load_data(tmp_path, 4)


def test_hidden_and_system_files_are_left_out_and_named(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", "cat/.1.png", ".ipynb_checkpoints/1.png", "desktop.ini")
    put(tmp_path, ".thumbs/2.png", "__MACOSX/cat/._1.png", "cat/Thumbs.db", "cat/@eaDir/1.png")
    (tmp_path / "bird").mkdir()
    data = load_data(tmp_path, 4)
    assert data.condition == {"kind": "class", "labels": ["cat", "dog"]}
    assert set(data.left_out) == {
        "cat/.1.png", ".ipynb_checkpoints/", ".thumbs/", "__MACOSX/", "cat/Thumbs.db",
        "cat/@eaDir/", "desktop.ini", "bird/",
    }  # fmt: skip
    with pytest.warns(UserWarning, match=r"left out: .*\(8 in all\)"):
        assert load_images(tmp_path, 4).equal(data.images)


def test_linked_folders_and_files_are_read(tmp_path):
    put(tmp_path / "far", "dog/1.png", "2.png", "x/3.png")
    home = put(tmp_path / "data", "cat/1.png")
    (home / "dog").symlink_to(tmp_path / "far/dog")
    (home / "cat/2.png").symlink_to(tmp_path / "far/2.png")
    (tmp_path / "link").symlink_to(home)
    for path in (home, tmp_path / "link"):
        assert load_data(path, 4).describe() == "3 images, 2 classes: cat, dog"


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_loops_are_left_out(tmp_path, target):
    home = put(tmp_path / "data", "cat/a/1.png", "dog/a/1.png", "dog/2.png")
    (home / "cat/a/loop").symlink_to(target)
    data = load_data(home, 4)
    assert data.describe() == "3 images, 3 classes: cat/a, dog, dog/a; left out: cat/a/loop/"


@pytest.mark.parametrize(
    ("link", "target"), [("dogs", "dog"), ("dog/2.png", "1.png"), ("cat/b", "../dog")]
)
def test_nothing_is_read_twice(tmp_path, link, target):
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(ValueError, match=r"the same (folder|image) as .*, through a link"):
        load_data(tmp_path, 4)


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    put(tmp_path, "cat/1.png")
    (tmp_path / "dog").symlink_to("gone")
    with pytest.raises(ValueError, match=r"dog: a link to nothing"):
        load_data(tmp_path, 4)
    (tmp_path / "dog").unlink()
    os.mkfifo(tmp_path / "cat/2.png")
    with pytest.raises(ValueError, match=r"2.png: neither a file nor a folder"):
        load_data(tmp_path, 4)


@pytest.mark.parametrize(
    "label", ["dog ", " dog", "\u00a0dog", "do\ng", "dog\u200b", "d\udce9g", "\x1bdog"]
)
def test_labels_that_could_not_be_asked_for_are_refused(tmp_path, label):
    put(tmp_path, "cat/1.png", f"{label}/1.png")
    with pytest.raises(ValueError, match=r"the label .* rename the folder"):
        load_data(tmp_path, 4)


def test_names_that_look_the_same_are_refused(tmp_path):
    put(tmp_path, f"{NFC}/1.png", f"{NFD}/1.png")
    with pytest.raises(ValueError, match=r"look the same"):
        load_data(tmp_path, 4)


def test_files_beside_classes_that_are_no_pictures_are_named(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", "readme.md", "classes.txt", "dog/more.zip")
    left = "classes.txt, dog/more.zip, readme.md"
    assert load_data(tmp_path, 4).describe() == f"2 images, 2 classes: cat, dog; left out: {left}"


def test_a_folder_without_pictures_tells_what_it_holds(tmp_path):
    put(tmp_path, "train-0.parquet", "a.npz")
    with pytest.raises(ValueError, match=r"no images in it, but a.npz, train-0.parquet"):
        load_data(tmp_path, 4)


CAT = '{"file_name": "1.png", "text": "a cat"}'
DOG = '{"file_name": "2.png", "text": "a dog"}'
HEAD = "file_name,text\n"
CAPTIONED = [
    {"metadata.csv": f"{HEAD}1.png,a cat\nx/2.png,a dog\n"},
    {"Metadata.CSV": '\ufefftext, file_name\r\n"a cat", ./1.png\r\n"a\ndog","x/2.png"\r\n'},
    {"metadata.jsonl": f"{CAT}\n\n{DOG.replace('2.png', 'x/2.png')}"},
    {"metadata.csv": f"{HEAD}1.png,a cat\n", "x/metadata.jsonl": DOG},
    {"1.txt": "a cat", "x/2.txt": "a dog"},
    {"1.TXT": "a cat", "x/2.caption": "a dog\n"},
]


def captioned(folder: Path, captions: dict[str, str]) -> Path:
    put(folder, "1.png", "x/2.png")
    for name, text in captions.items():
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("captions", CAPTIONED)
def test_captions_are_read_wherever_they_stand(tmp_path, captions):
    data = load_data(captioned(tmp_path, captions), 4)
    assert data.condition["tokenizer"]["vocabulary"] == ["a", "cat", "dog"]
    assert data.cond[:, :2].tolist() == [[1, 2], [1, 3]]
    beside = sorted({Path(name).suffix.lower() for name in captions})
    source = ", ".join(captions if any("etadata" in name for name in captions) else beside)
    assert data.describe() == f"2 images with captions ({source})"


OTHER = {"x/2.txt": "a dog"}


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"1.txt": "a cat"}, r"2.png: has no caption, but others have"),
        ({"1.txt": "", "x/2.txt": " \n"}, r"1.txt: has no caption; write one"),
        ({"1.txt": "a cat", "x/2.txt": ""}, r"2.txt: has no caption; write one"),
        ({"metadata.csv": f"{HEAD}1.png,\nx/2.png,b"}, r"csv, line 2: has no caption; write one"),
        ({"metadata.csv": f"{HEAD}1.png\nx/2.png,b"}, r"csv, line 2: has no caption; write one"),
        ({"metadata.csv": ""}, r"1.png: has no caption"),
        ({"metadata.csv": "file_name,caption\n1.png,a"}, r"line 2: holds 'file_name', 'caption';"),
        ({"metadata.csv": "file_name;text\n1.png;a cat\n"}, r"line 2: holds 'file_name;text'"),
        ({"metadata.csv": f'{HEAD}1.png,"a cat\n'}, r"metadata.csv, line \d: not CSV"),
        ({"metadata.csv": f"{HEAD}1.png,a\n3.png,b\n"}, r"line 3: no image '3.png' there"),
        (
            {"metadata.csv": f"{HEAD}1.png,a\n./1.png,b\n"},
            r"line 3: '\./1.png' has an earlier caption",
        ),
        ({"metadata.jsonl": f"\n{CAT[:-1]}"}, r"metadata.jsonl, line 2: not JSON"),
        ({"metadata.jsonl": '{"file_name": "1.png", "text": 5}'}, r"line 1: holds .*texts"),
        ({"metadata.jsonl": "[1]"}, r"metadata.jsonl, line 1: not an object"),
        ({"metadata.jsonl": "[" * 100_000}, r"metadata.jsonl, line 1: not JSON"),
        ({"metadata.parquet": "PAR1"}, r"metadata.parquet: not read; save it as metadata.csv"),
        ({"metadata.csv": HEAD, "1.txt": "a cat"}, r"1.txt: a caption next to .*metadata.csv"),
        ({"1.txt": "a cat", "1.caption": "a cat"}, r"1.txt: .*1.caption holds a caption too"),
        ({"1.txt": "a " * 600} | OTHER, r"1.txt: a caption of 1199 characters; at most 1000"),
        ({"1.txt": "a " * 129} | OTHER, r"1.txt: a caption of 129 tokens, .*; at most 128"),
        ({"1.txt": "\U0001f34e!"} | OTHER, r"1.txt: no word of the caption .* is known"),
        ({"1.txt": "a" * 70_000} | OTHER, r"1.txt: over 65536 bytes, too long"),
    ],
)
def test_captions_that_cannot_be_used_name_the_file_and_line(tmp_path, captions, message):
    with pytest.raises(ValueError, match=message) as e:
        load_data(captioned(tmp_path, captions), 4)
    assert "prompt" not in str(e.value)


def test_a_table_finds_names_in_another_normal_form(tmp_path):
    put(tmp_path, f"{NFD}.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{NFC}.png,coffee\n", "utf-8")
    assert load_data(tmp_path, 4).describe() == "1 image with captions (metadata.csv)"


def test_captions_for_a_tokenizer_that_is_known(tmp_path):
    from flowturbo.models.tokenizer import Tokenizer

    put(tmp_path, "1.png")
    (tmp_path / "1.txt").write_text("a bird")
    assert load_data(tmp_path, 4, Tokenizer(["bird"], 4)).cond.tolist() == [[1, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"1.txt: no word of the caption 'a bird' is known"):
        load_data(tmp_path, 4, Tokenizer(["dog"], 4))


def read(path: Path | str) -> ArrayData | str:
    """The data, or why they are refused; anything else fails."""
    try:
        return load_data(path, 4)
    except ValueError as e:
        return str(e)


PART = st.sampled_from(["cat", "dog ", "Dog", NFC, ".git", "__MACOSX", "train", "a.b"])
NAMES = (
    "1.png", "2.JPG", "3.gif", "1.tif", f"{NFD}.png", "x.heic", "notes", "more.zip", "1.txt",
    "1.caption", "metadata.csv", "metadata.jsonl", "metadata.json", "1.npz", ".png", "Thumbs.db",
)  # fmt: skip
PLACE = st.tuples(st.lists(PART, max_size=2).map(tuple), st.sampled_from(NAMES))
CONTENTS = ("picture", "picture", "text", "empty", "link to a picture", "loop", "link to nothing")


def lay_out(folder: Path, layout: dict[tuple[tuple[str, ...], str], str]) -> list[Path]:
    far = put(folder.parent / "far", "p.png") / "p.png"
    folder.mkdir()
    for (parts, name), content in layout.items():
        path = folder.joinpath(*parts, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "picture":
            path.write_bytes(far.read_bytes())
        elif content in ("text", "empty"):
            path.write_text("a text" if content == "text" else "")
        else:
            path.symlink_to({"loop": ".", "link to a picture": far}.get(content, "gone"))
    return [folder.joinpath(*parts, name) for parts, name in layout]


LAYOUTS = given(st.dictionaries(PLACE, st.sampled_from(CONTENTS), min_size=1, max_size=8))


def check_layout(layout):
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "data")
        files = lay_out(folder, layout)
        data = read(folder)
        if isinstance(data, str):
            assert any(part in data for parts, name in layout for part in (*parts, name))
            return
        left = {folder / name for name in data.left_out}
        kept = [p for p in files if not left & {p, *p.parents}]
        used = [p for p in kept if p.suffix in (".txt", ".caption", ".csv", ".jsonl")]
        assert len(kept) - len(used) == len(data)
        assert all(p.suffix in data.source for p in used)


@settings(max_examples=50, deadline=None)
@LAYOUTS
def test_each_file_is_read_or_named(layout):
    check_layout(layout)


@pytest.mark.slow
@settings(max_examples=1_000, deadline=None)
@LAYOUTS
def test_each_file_of_many_is_read_or_named(layout):
    check_layout(layout)


EXIF = Image.Exif()
EXIF[0x112] = 6
PIXELS = Image.effect_mandelbrot((9, 7), (-3, -2.5, 2, 2.5), 20).convert("RGB")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    PIXELS.save(file, kind, **({"exif": EXIF} if kind in ("JPEG", "WEBP", "PNG", "TIFF") else {}))
    return file.getvalue()


FILES = {k: encoded(k) for k in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "TGA", "ICO", "PPM")}


DAMAGES = given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0.1, 1),
    st.sampled_from(["a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.tga", "a"]),
)


def check_damaged(kind, changes, share, name):
    raw = bytearray(FILES[kind])
    for at, byte in changes:
        raw[int(at * (len(raw) - 1))] = byte
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(action="error"):
        put(Path(home), "b.png")
        Path(home, name).write_bytes(raw[: int(share * len(raw))])
        data = read(home)
        if isinstance(data, str):
            assert data.startswith(str(Path(home, name)))
        else:
            assert len(data) + len(data.left_out) == 2


@settings(max_examples=150, deadline=None)
@DAMAGES
def test_damaged_pictures_are_read_or_named(kind, changes, share, name):
    check_damaged(kind, changes, share, name)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@DAMAGES
def test_many_damaged_pictures_are_read_or_named(kind, changes, share, name):
    check_damaged(kind, changes, share, name)


@pytest.mark.parametrize("length", range(0, 26, 2))
def test_broken_exif_is_named_or_without_effect(tmp_path, length):
    PIXELS.save(tmp_path / "a.jpg", exif=EXIF.tobytes()[: 6 + length])
    data = read(tmp_path)
    assert not isinstance(data, str) or "a.jpg: not a readable image" in data


def test_all_that_cannot_be_read_is_told_at_once(tmp_path):
    put(tmp_path, "0.png")
    for i in range(1, 15):
        (tmp_path / f"{i:02}.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"01.png: .*; .*10.png: .*; and 4 more$"):
        load_data(tmp_path, 4)

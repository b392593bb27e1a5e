from pathlib import Path

import numpy as np
import torch
from digit_reader import READER, load_reader, to_input
from safetensors import safe_open

SAMPLE = Path(__file__).parent / "data" / "digits_sample.npz"


def test_file_is_small_and_says_what_it_is():
    assert READER.stat().st_size < 1_000_000
    with safe_open(READER, "pt") as file:
        metadata = file.metadata()
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}
    assert float(metadata["test_accuracy"]) >= 0.99
    assert int(metadata["test_images"]) == 10_000
    assert {"architecture", "data", "split", "seed", "command"} <= metadata.keys()


def test_reads_held_out_digits():
    with np.load(SAMPLE) as data:
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    assert len(images) == len(labels) == 200
    assert set(labels.tolist()) == set(range(10))
    x = to_input(images)
    assert x.shape == (200, 1, 32, 32)
    assert (x.min(), x.max()) == (-1, 1)
    logits = load_reader()(x)
    assert logits.shape == (200, 10)
    assert (logits.argmax(1) == labels).double().mean() >= 0.98

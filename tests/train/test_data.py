"""Data: what is read of folders and arrays, and that nothing is lost or changed without a word."""

from __future__ import annotations

import torch

from flowturbo.train import ArrayData

LABELS = {"kind": "class", "labels": ["cat", "dog"]}


def _data(**changes: object) -> ArrayData:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    given = {"images": images, "cond": torch.tensor([0, 1]), "condition": LABELS}
    return ArrayData(**(given | changes))


def test_digest_names_all_that_decides_a_run() -> None:
    data = _data()
    changed = data.images.clone()
    changed[1, 2, 3, 4] ^= 1
    others = [
        _data(images=changed),
        _data(images=data.images.flip(0)),
        _data(images=data.images.reshape(2, 3, 5, 4)),
        _data(cond=torch.tensor([1, 0])),
        _data(condition={"kind": "class", "labels": ["cat", "cow"]}),
        _data(cond=None, condition=None),
    ]
    digests = {d.digest() for d in [data, *others]}
    assert len(digests) == 1 + len(others)
    assert all(len(d) == 16 and int(d, 16) >= 0 for d in digests)


def test_digest_is_of_the_content_alone() -> None:
    same = _data(condition={"labels": ["cat", "dog"], "kind": "class"})
    strided = _data(images=_data().images.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1))
    assert _data().digest() == same.digest() == strided.digest() == "2923721f99257943"

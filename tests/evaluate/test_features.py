"""EfficientNet-Lite0 features: shapes, determinism, refusals, and that the weights are the right
ones."""

from __future__ import annotations

import sys

import pytest
import torch

from flowturbo.evaluate.features import FEATURES, EffNetFeatures


@pytest.fixture(scope="module")
def features() -> EffNetFeatures:
    return EffNetFeatures()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_one_row_per_image_in_any_batch(features, images):
    rows = features(images)
    assert rows.shape == (3, FEATURES)
    assert rows.dtype == torch.float32
    assert (rows >= 0).all()
    assert rows.std(0).mean() > 0.01  # the weights are not those of an untrained network
    torch.testing.assert_close(features(images, batch=1), rows, rtol=1e-3, atol=1e-4)
    assert features(images[:0]).shape == (0, FEATURES)


def test_probabilities_are_those_of_the_classifier(features, images):
    rows = features(images)
    found = features.probabilities(rows)
    assert found.shape == (3, 1000)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    whole = (images[:1] * 255).round()
    whole = torch.nn.functional.interpolate(whole, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = features.network((whole.clamp(0, 255) - 127) / 128).softmax(1)
    torch.testing.assert_close(found[:1], expected, rtol=1e-3, atol=1e-6)


def test_grey_is_rgb_and_eight_bits_count(features, images):
    grey = images[:1, :1]
    torch.testing.assert_close(features(grey), features(grey.expand(-1, 3, -1, -1)))
    rounded = (images[:1] * 255).round() / 255
    torch.testing.assert_close(features(rounded), features(images[:1]), rtol=1e-4, atol=1e-4)


def test_refuses(features, images):
    with pytest.raises(ValueError, match="must be"):
        features(images[0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        features(images * 2 - 1)
    with pytest.raises(ValueError, match="batch=0"):
        features(images, batch=0)


def test_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"flowturbo\[eval\]"):
        EffNetFeatures()

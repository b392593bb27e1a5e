"""The official scores: the call of torch-fidelity, by a stand-in of the same interface."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch.utils.data import Dataset

from flowturbo.evaluate.fidelity import official_scores
from flowturbo.evaluate.frechet import frechet_distance
from flowturbo.evaluate.scores import precision_recall

KNOWN = {
    "input1", "input2", "cuda", "batch_size", "cache", "save_cpu_ram", "verbose", "fid", "isc",
    "prc", "feature_extractor", "feature_layer_fid", "feature_layer_prc", "prc_neighborhood",
}  # fmt: skip  # of torch-fidelity 0.4


class Inception(torch.nn.Module):
    """Features of the layers asked for, after a block called as the real one is."""

    def __init__(self, name, features_list):
        super().__init__()
        self.features_list = features_list
        self.Mixed_6d = torch.nn.AvgPool2d(4)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        block = self.Mixed_6d(x.double().repeat(1, 4, 1, 1))  # 12 channels
        return tuple(block[:, :3].mean((2, 3)) for _ in self.features_list)


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the package; the arguments of each call."""
    package, registry, seen = ModuleType("torch_fidelity"), ModuleType("registry"), []
    known = registry.FEATURE_EXTRACTORS_REGISTRY = {"inception-v3-compat": Inception}

    def register(name, cls):
        assert name not in known
        assert issubclass(cls, Inception)
        known[name] = cls

    def calculate_metrics(**given):
        assert set(given) <= KNOWN
        seen.append(given)
        assert all(isinstance(given[f"input{i}"], Dataset) for i in (1, 2))
        layer = given.get("feature_layer_fid", "2048")
        network = known[given["feature_extractor"]](given["feature_extractor"], [layer])
        rows = [torch.stack([given[f"input{i}"][j] for j in range(12)]) for i in (1, 2)]
        a, b = (network(x)[0] for x in rows)
        found = {"frechet_inception_distance": frechet_distance(a, b)}
        if given.get("isc"):
            found |= {"inception_score_mean": 2.0, "inception_score_std": 0.5}
        if given.get("prc"):
            pr = precision_recall(a, b, neighbours=given["prc_neighborhood"])
            found |= {"precision": pr["precision"], "recall": pr["recall"], "f_score": 0.0}
        return found

    package.FeatureExtractorInceptionV3 = Inception
    package.register_feature_extractor = register
    package.calculate_metrics = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.registry", registry)
    return seen


def eight_bits(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (12, channels, 16, 16), generator=generator).byte()


def test_scores_and_the_features_of_sfid(calls):
    a, b = eight_bits(1, 0), eight_bits(3, 1)
    found = official_scores(a, b, batch=5)
    assert set(found) == {"fid", "sfid", "is", "is_std", "precision", "recall"}
    pool = lambda x: torch.nn.functional.avg_pool2d(x.double().expand(-1, 3, -1, -1), 4)
    means = [pool(x).mean((2, 3)) for x in (a, b)]
    assert found["fid"] == pytest.approx(frechet_distance(*means))
    assert found["precision"] == precision_recall(*means)["precision"]
    spatial = [pool(x).repeat(1, 4, 1, 1)[:, :7].flatten(1) for x in (a, b)]
    assert found["sfid"] == pytest.approx(frechet_distance(*spatial), rel=1e-4)
    both, alone = calls
    assert both["fid"]
    assert both["isc"]
    assert both["prc"]
    assert "isc" not in alone
    assert (both["prc_neighborhood"], both["batch_size"], both["cuda"]) == (3, 5, False)
    assert official_scores(a, b) == found  # registered but once


def test_refuses(calls):
    a = eight_bits(3, 0)
    with pytest.raises(ValueError, match=r"real: .*uint8"):
        official_scores(a, a.float())
    with pytest.raises(ValueError, match="images: 9 of them"):
        official_scores(a[:9], a)


def test_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"flowturbo\[fid\]"):
        official_scores(eight_bits(3, 0), eight_bits(3, 1))

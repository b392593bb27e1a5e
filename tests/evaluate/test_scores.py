"""Scores against closed forms, the formulas written out, and other packages where installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowturbo.evaluate.frechet import frechet_distance
from flowturbo.evaluate.scores import covered, inception_score, precision_recall


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fidelity_score(logits, splits):
    """torch-fidelity's inception score, from logits, in the order given."""
    log = logits.double().numpy()
    log = log - np.log(np.exp(log).sum(1, keepdims=True))
    each = []
    for i in range(splits):
        part = log[i * len(log) // splits : (i + 1) * len(log) // splits]
        p = np.exp(part)
        each.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return np.mean(each), np.std(each)


def fidelity_frechet(a, b):
    """The formula of torch-fidelity and of torchmetrics: the eigenvalues of the product."""
    a, b = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root


def fidelity_inside(a, b, k):
    """The share of ``a`` within the k-th neighbour's distance of some ``b``, one pair at a time."""
    distance = lambda x, y: np.sqrt(((x - y) ** 2).sum(-1))
    a, b = a.double().numpy(), b.double().numpy()
    reach = [np.sort(distance(b, y))[k] for y in b]
    return np.mean([any(distance(x, b) <= reach) for x in a])


def test_score_has_closed_forms():
    assert inception_score(torch.full((20, 7), 1 / 7))["mean"] == pytest.approx(1)
    sure = torch.eye(5).repeat(8, 1)  # each class alike, and certain
    assert inception_score(sure, splits=4) == pytest.approx({"mean": 5, "std": 0})
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])  # two classes, known to 90 %
    expected = np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert inception_score(p, splits=1)["mean"] == pytest.approx(expected, rel=1e-6)


def test_balls_have_closed_forms():
    line = torch.arange(6.0)[:, None]  # each ball reaches to 2, at the ends to 3
    asked = torch.tensor([[-3.1], [-3.0], [2.5], [8.0], [8.1]])
    assert covered(asked, line).tolist() == [0, 1, 1, 1, 0]
    assert precision_recall(line, line)["precision"] == precision_recall(line, line)["recall"] == 1
    far = precision_recall(line, line + 100)
    assert far == {"precision": 0, "precision_95": [0, 0], "recall": 0, "recall_95": [0, 0]}
    few = torch.cat([line, line + 100])  # all that is drawn is real, half of the real is drawn
    found = precision_recall(line, few)
    assert (found["precision"], found["recall"]) == (1, 0.5)
    assert found["recall_95"][0] < 0.5 < found["recall_95"][1]


@pytest.mark.parametrize("splits", [1, 10])
def test_score_equals_the_formula_of_others(splits):
    logits = 3 * randn(103, 20)
    found = inception_score(logits.softmax(1), splits=splits)
    mean, std = fidelity_score(logits, splits)
    assert found == pytest.approx({"mean": mean, "std": std}, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_formula_of_others(k):
    a, b = randn(60, 8), 0.9 * randn(80, 8, seed=1) + 0.2
    found = precision_recall(a, b, neighbours=k)
    assert found["precision"] == fidelity_inside(a, b, k)
    assert found["recall"] == fidelity_inside(b, a, k)
    assert 0 < found["precision"] < 1


def test_frechet_equals_the_formula_of_others():
    a, b = randn(90, 12), 1.2 * randn(70, 12, seed=1) + 0.1
    assert frechet_distance(a, b) == pytest.approx(fidelity_frechet(a, b), rel=1e-6)


def test_equal_those_of_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    a, b = randn(300, 40), 0.9 * randn(400, 40, seed=1) + 0.1
    both = [fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid_statistics_to_metric(*both, False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)
    found = precision_recall(a, b)
    theirs = calculate_precision_recall_full(a, b)
    assert (found["precision"], found["recall"]) == pytest.approx(theirs, rel=1e-4)
    theirs = isc_features_to_metric(a, 10, shuffle=False)
    found = inception_score(a.softmax(1))
    assert [*found.values()] == pytest.approx([*theirs.values()], rel=1e-4)


def test_equal_those_of_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import _compute_fid

    a, b = randn(90, 12).double(), 1.2 * randn(70, 12, seed=1).double() + 0.1
    theirs = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-4)


def test_refuses():
    p = torch.full((4, 2), 0.5)
    for bad in (2 * p, p[0], torch.tensor([[1.5, -0.5]] * 4)):
        with pytest.raises(ValueError, match="summing to 1"):
            inception_score(bad, splits=2)
    with pytest.raises(ValueError, match="splits=10"):
        inception_score(p)
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="neighbours=5"):
        precision_recall(x, x, neighbours=5)
    with pytest.raises(ValueError, match="of one network"):
        precision_recall(x, x[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(x / 0, x)

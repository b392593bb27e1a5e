"""Noise: an image depends on its seed alone."""

import numpy as np
import pytest
import torch

from flowturbo import noise
from flowturbo.noise import draw, mixed


def test_an_image_of_a_batch_is_its_seed_drawn_alone():
    seeds = [7, 0, 123456789, 2**40, 7]
    batch = draw(seeds, (3, 8, 8))
    assert batch.shape == (5, 3, 8, 8)
    for row, seed in zip(batch, seeds, strict=True):
        assert torch.equal(row, draw(seed, (3, 8, 8))[0])
    assert torch.equal(batch[0], batch[4])
    assert not torch.equal(batch[0], batch[1])


def test_it_is_standard_normal():
    x = draw(range(64), (256,), dtype=torch.float64)
    assert x.dtype == torch.float64
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.03


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw([1, 2], (4,))
    assert torch.equal(before, torch.get_rng_state())


def test_no_seeds_no_images():
    assert draw([], (3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        draw([0, seed], (2,))


@pytest.mark.parametrize("seeds", [1.5, [1.5], "3", True, [None], torch.tensor([0.5])])
def test_seeds_are_whole_numbers(seeds):
    with pytest.raises(ValueError, match="must be a whole number"):
        noise.draw(seeds, (2,))


def test_seeds_of_any_integer_type():
    expected = noise.draw([3], (2,))
    for seed in (np.int64(3), [np.int32(3)], torch.tensor([3]), range(3, 4)):
        assert torch.equal(noise.draw(seed, (2,)), expected)


def test_mixed_seeds_follow_from_each_number_and_are_no_pictures():
    seeds = {mixed(a, b, c) for a in range(3) for b in range(3) for c in range(50)}
    assert len(seeds) == 3 * 3 * 50
    assert all(2**31 <= s < 2**32 for s in seeds)
    assert mixed(1, 2) == mixed(1, 2) != mixed(2, 1)

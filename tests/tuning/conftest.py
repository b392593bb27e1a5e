"""Reference trajectories that several tests fit to."""

import pytest
from fields import mixture
from tuned import initial_noise

from flowturbo.tuning.reference import solve


@pytest.fixture(scope="session")
def reference():
    return solve(mixture, initial_noise(256))

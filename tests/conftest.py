"""Settings for all tests: few threads, no network, nothing written to the working directory."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_generator_is_left_alone(request):
    """No test may depend on the order of the others: each starts from the same global seed."""
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill memory that PyTorch hands out uninitialised with NaN, so that gaps are seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

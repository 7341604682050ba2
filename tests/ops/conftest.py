import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill memory that PyTorch hands out uninitialised with NaN, so that gaps are seen."""
    # Triton's backward on a GPU is not deterministic and would raise.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

"""DCNv3, the operator of InternImage, as a native PyTorch operator. Needs torch only."""

from .backends import available_backends, explain_backend, use_backend
from .fast_cpu import explain_fast_cpu, set_fast_cpu, use_fast_cpu
from .functional import dcnv3, sampling_points
from .modules import DCNv3

__all__ = [
    'DCNv3',
    'available_backends',
    'dcnv3',
    'explain_backend',
    'explain_fast_cpu',
    'sampling_points',
    'set_fast_cpu',
    'use_backend',
    'use_fast_cpu',
]

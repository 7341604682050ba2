"""DCNv3, the operator of InternImage, as a native PyTorch operator. Needs torch only."""

from .backends import available_backends, explain_backend, use_backend
from .functional import dcnv3
from .modules import DCNv3

__all__ = ['DCNv3', 'available_backends', 'dcnv3', 'explain_backend', 'use_backend']

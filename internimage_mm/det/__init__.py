"""What mmdet needs beyond a backbone: DINO and CB-DINO as the official release computes them.

Import it (``custom_imports``) to register its classes in mmengine's root registry.
"""

from .cb_dino import CBDINO, CBChannelMapper, CBDINOHead
from .dino import InternImageDINO, InternImageDINOHead

__all__ = ['CBDINO', 'CBChannelMapper', 'CBDINOHead', 'InternImageDINO', 'InternImageDINOHead']

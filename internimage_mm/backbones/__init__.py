from .cb_internimage import CBInternImage
from .internimage import InternImage

__all__ = ['CBInternImage', 'InternImage']

from .cb_internimage import CBInternImage
from .internimage import InternImage
from .lora import LoRAInternImage
from .necks import AttentionPoolingNeck, ConvPoolingNeck

__all__ = [
    'AttentionPoolingNeck',
    'CBInternImage',
    'ConvPoolingNeck',
    'InternImage',
    'LoRAInternImage',
]

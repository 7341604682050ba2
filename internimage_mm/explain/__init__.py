"""Where DCNv3 samples, and what a feature depends on: for any model with our backbone."""

from .page import write_page
from .picture import draw
from .receptive_field import SHARES, areas, receptive_field
from .sampling import Recording, Sampling, record

__all__ = [
    'SHARES',
    'Recording',
    'Sampling',
    'areas',
    'draw',
    'receptive_field',
    'record',
    'write_page',
]

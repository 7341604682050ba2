"""What the backbone tests share: golden data of the official backbone, and a tiny backbone."""

import json
from pathlib import Path

import numpy as np
import torch
from golden.deterministic_weights import tensor_for

from internimage_mm import InternImage

GOLDEN = Path(__file__).parents[1] / 'golden' / 'backbone'
VARIANTS = sorted(
    path.stem
    for path in GOLDEN.glob('*.json')
    if '__' not in path.stem and not path.stem.startswith('cb_')
)
GRADIENT_VARIANTS = sorted(
    path.stem.removesuffix('__grad_64x96')
    for path in GOLDEN.glob('*__grad_64x96.json')
    if not path.stem.startswith('cb_')
)
assert VARIANTS and GRADIENT_VARIANTS, f'no golden files in {GOLDEN}'

BACKENDS = ('cpu', 'reference')


def golden(name):
    return json.loads((GOLDEN / f'{name}.json').read_text())


def golden_arrays(name):
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return dict(arrays)


def golden_image(size):
    return torch.from_numpy(golden_arrays(f'image_{size}')['image'])


def golden_backbone(name, **changes):
    """A golden backbone with the golden weights, in evaluation mode.

    The files say ``core_op='DCNv3_pytorch'``, which would pin our plain PyTorch backend.
    """
    config = {**golden(name)['config'], 'core_op': 'DCNv3', **changes}
    return with_golden_weights(InternImage(**config)).eval()


def with_golden_weights(model):
    model.load_state_dict(
        {
            k: torch.from_numpy(tensor_for(k, v.shape, v.dtype))
            for k, v in model.state_dict().items()
        }
    )
    return model


TINY = dict(channels=16, depths=[2, 1, 3, 1], groups=[1, 2, 4, 8])


def tiny(**changes):
    """A small backbone as the constructor makes it."""
    return InternImage(**{**TINY, **changes})


def images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

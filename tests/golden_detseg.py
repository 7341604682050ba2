"""Golden data of the official detectors and segmentors, and how our results are compared with them.

``golden/detseg/<name>`` has the official model, the names of its weights, and of every array that
the official run recorded a part, which the stored name says: of large feature maps every third row
and column, for instance.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import torch
from golden.deterministic_weights import tensor_for

import internimage_mm  # noqa: F401  prepares torchvision, which mmdet and mmseg import

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden' / 'detseg'
STABILITY = json.loads((GOLDEN / 'stability.json').read_text())


@functools.cache
def meta(name):
    return json.loads((GOLDEN / name / 'meta.json').read_text())


@functools.cache
def arrays(name, file='outputs'):
    with np.load(GOLDEN / name / f'{file}.npz') as stored:
        return dict(stored)


def losses_of(name):
    return json.loads((GOLDEN / name / 'losses.json').read_text())


def image_file(name):
    return ROOT / 'tests' / 'golden' / meta(name)['image']


def golden_input(name):
    """The image as the official pipeline preprocessed it."""
    with np.load(ROOT / 'tests' / 'golden' / meta(name)['input_file']) as stored:
        return torch.from_numpy(stored['img'])


def official_state_dict(name):
    """The golden weights under official names."""
    overrides = meta(name).get('weight_overrides', {})
    return {
        key: torch.from_numpy(
            np.full(shape, overrides[key], dtype)
            if key in overrides
            else np.asarray(tensor_for(key, shape, dtype))
        )
        for key, shape, dtype in meta(name)['keys']
    }


def save_official_checkpoint(name, path):
    """A file as the official release publishes them."""
    torch.save({'meta': {'CLASSES': None}, 'state_dict': official_state_dict(name)}, path)
    return path


def assert_near(name, key, actual, tolerance, file='outputs'):
    """Compare with what is stored of an array.

    Args:
        name: The golden model.
        key: The array's name without the ending that says what is stored of it.
        actual: The whole array.
        tolerance: Maps a stored name to the largest absolute difference allowed.
        file: Where it is stored.
    """
    actual = actual.detach().double().numpy()
    stored = {k: v for k, v in arrays(name, file).items() if k.partition('__')[0] == key}
    assert stored
    for part, expected in stored.items():
        values = part_of(actual, part)
        assert values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance(part), err_msg=part)


class GoldenRandom:
    """The random numbers of the golden losses: functions to put in place of PyTorch's.

    Call ``k`` of any of them yields ``PCG64(1000 + k).random(shape)``; ``calls`` records them.
    """

    def __init__(self):
        self.calls = []

    def uniform(self, function, shape):
        generator = np.random.Generator(np.random.PCG64(1000 + len(self.calls)))
        self.calls.append([function, list(shape), len(self.calls)])
        return torch.from_numpy(generator.random(tuple(shape)))

    def rand(self, *size, dtype=None, **kwargs):
        size = size if isinstance(size[0], int) else size[0]
        return self.uniform('rand', size).to(dtype or torch.get_default_dtype())

    def rand_like(self, tensor, **kwargs):
        return self.uniform('rand_like', tensor.shape).to(tensor.dtype)

    def randint_like(self, tensor, low=0, high=None, dtype=None, **kwargs):
        u = self.uniform(f'randint_like[{low},{high})', tensor.shape)
        return (low + (high - low) * u).floor().to(dtype or tensor.dtype)

    def randperm(self, n, **kwargs):
        return torch.argsort(self.uniform('randperm', [n]), stable=True)

    def patch(self, monkeypatch):
        for name in ('rand', 'rand_like', 'randint_like', 'randperm'):
            monkeypatch.setattr(torch, name, getattr(self, name))


def part_of(array, name):
    """The part of an array that is stored under a name.

    Args:
        array: The whole array or tensor, (N, C, ...); for a statistic in double precision.
        name: ``<array>__<ending>__...``, endings applied in this order: ``every4ch`` and
            ``every5th_class`` take every n-th of the second axis, ``every3rd_pixel`` every n-th
            row and column, ``chmean`` and ``chstd`` are statistics of each channel.

    Raises:
        ValueError: For another ending.
    """
    for ending in name.split('__')[1:]:
        if ending == 'chmean':
            array = array.mean((0, 2, 3))
        elif ending == 'chstd':
            array = array.std((0, 2, 3))
        elif match := re.fullmatch(r'every(\d+)(?:ch|th_class)', ending):
            array = array[:, :: int(match[1])]
        elif match := re.fullmatch(r'every(\d+)(?:rd|th)_pixel', ending):
            step = int(match[1])
            array = array[..., ::step, ::step]
        else:
            raise ValueError(f'ending {ending!r} of {name!r} is none of those known here')
    return array

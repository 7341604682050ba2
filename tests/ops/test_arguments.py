"""Wrong arguments are named, with the value given and the value needed."""

import pytest
import torch
from op_cases import BACKENDS

from ops_dcnv3 import dcnv3


def tensors(channels=8, groups=2, size=(1, 4, 5), points=9):
    return dict(
        input=torch.zeros(*size, channels),
        offset=torch.zeros(*size, groups * points * 2),
        mask=torch.zeros(*size, groups * points),
    )


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(groups=3), ValueError, r'groups must divide the 8 channels of input, got 3'),
        (dict(groups=0), ValueError, r'groups must divide the 8 channels'),
        (dict(groups=2.0), TypeError, r'groups must be an int, got 2.0'),
        (dict(kernel_size=0), ValueError, r'kernel_size must be at least 1, got 0'),
        (dict(kernel_size=(3, 3, 3)), TypeError, r'kernel_size must be an int or an \(h, w\)'),
        (dict(stride=(1, 0)), ValueError, r'stride must be at least 1'),
        (dict(padding=-1), ValueError, r'padding must be at least 0, got -1'),
        (dict(dilation='1'), TypeError, r"dilation must be an int.*'1'"),
        (dict(kernel_size=2, remove_center=True), ValueError, r'odd kernel_size, got 2'),
        (dict(kernel_size=1, remove_center=True, padding=0), ValueError, r'leaves no point'),
        (dict(kernel_size=9), ValueError, r'4x5 pixels.*output of -2x-1'),
        (dict(offset_scale=float('nan')), ValueError, r'offset_scale must be a finite .*got nan'),
        (dict(offset_scale='2'), ValueError, r"offset_scale must be a finite .*got '2'"),
        (dict(offset=None), TypeError, r'offset must be a torch.Tensor, got NoneType'),
        (dict(input=torch.zeros(4, 5, 8)), ValueError, r'input must have 4 dim.*\(4, 5, 8\)'),
        (dict(input=None), TypeError, r'input must be a torch.Tensor, got NoneType'),
        (
            dict(input=torch.zeros(1, 4, 5, 8, dtype=torch.int32)),
            TypeError,
            r'input must be float32, float64, bfloat16 or float16, got torch.int32',
        ),
        (
            dict(mask=torch.zeros(1, 4, 5, 18, dtype=torch.float64)),
            TypeError,
            r'mask must have the dtype of input, torch.float32, got torch.float64',
        ),
        (
            dict(offset=torch.zeros(1, 4, 5, 36, device='meta')),
            ValueError,
            r'offset must be on the device of input, cpu, got meta',
        ),
        (
            dict(offset=torch.zeros(1, 4, 5, 18)),
            ValueError,
            r'offset must have shape \(1, 4, 5, 36\).*K = 9 points and 2 groups, got \(1, 4, 5, 18',
        ),
        (
            dict(mask=torch.zeros(2, 4, 5, 18)),
            ValueError,
            r'mask must have shape \(1, 4, 5, 18\).*got \(2, 4, 5, 18\)',
        ),
    ],
)
@pytest.mark.parametrize('backend', BACKENDS)
def test_function(change, error, message, backend):
    with pytest.raises(error, match=message):
        dcnv3(**{**tensors(), 'groups': 2, 'backend': backend, **change})


@pytest.mark.parametrize('step', [1, 256, 7])
def test_im2col_step_has_no_rule(step):
    output = dcnv3(**tensors(size=(3, 4, 5)), groups=2, im2col_step=step)
    assert output.shape == (3, 4, 5, 8)

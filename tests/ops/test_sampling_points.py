"""sampling_points against the recorded outputs: PyTorch's grid_sample at them gives the same."""

import pytest
import torch
from op_cases import CASES, golden_case, relative_error
from torch.nn import functional as F

from ops_dcnv3 import sampling_points


@pytest.mark.parametrize('number', CASES)
def test_points_give_the_recorded_output(number):
    tensors, options = golden_case(number)
    image, groups = tensors['input'], options['groups']
    batch, height, width, channels = image.shape
    points = sampling_points(tensors['offset'], **options)
    masks = tensors['mask'].unflatten(-1, (groups, -1))
    # grid_sample counts from -1 to 1, from edge to edge.
    grid = (2 * points + 1) / torch.tensor([width, height]) - 1
    outputs = []
    for g, part in enumerate(image.split(channels // groups, -1)):
        sampled = F.grid_sample(
            part.permute(0, 3, 1, 2), grid[:, :, :, g].flatten(2, 3), align_corners=False
        )
        sampled = sampled.unflatten(-1, masks.shape[2::2])
        outputs.append((sampled * masks[:, None, :, :, g]).sum(-1).permute(0, 2, 3, 1))
    assert relative_error(torch.cat(outputs, -1), tensors['output']) < 1e-11


def test_wrong_shape():
    with pytest.raises(
        ValueError, match=r'offset must have shape \(N, Ho, Wo, 72\).*\(1, 2, 2, 8\)'
    ):
        sampling_points(torch.zeros(1, 2, 2, 8), groups=4)

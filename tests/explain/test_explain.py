"""Points, weights, traces and receptive fields against the op, autograd and sums by hand."""

import pytest
import torch
from backbones.helpers import images
from torch.nn import functional as F

from internimage_mm.backbones import CBInternImage
from internimage_mm.explain import areas, receptive_field, record
from ops_dcnv3 import DCNv3

from .helpers import looking_around, sampled, small_backbone

SETTINGS = [
    {},
    dict(offset_scale=2.0, remove_center=True, post_norm=True),
    dict(dw_kernel_size=5, center_feature_scale=True),  # as H and G have it
]


def weighted_sum(layer, value):
    """What a layer's points and weights give for one value per group, (1, groups, H, W)."""
    groups = layer.weights.shape[2]
    outputs = [
        (sampled(value[:, g : g + 1], layer.points[None, :, :, g])[0, 0] * layer.weights[:, :, g])
        for g in range(groups)
    ]
    return torch.stack([output.sum(-1) for output in outputs])[None]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_points_and_weights_give_the_output_of_each_layer(settings):
    """With projections that change nothing, the layer's output is its weighted sum."""
    backbone, seen = small_backbone(**settings), []
    for layer in backbone.modules():
        if isinstance(layer, DCNv3):
            for projection in (layer.input_proj, layer.output_proj):
                projection.weight.copy_(torch.eye(layer.channels))
            layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
            if layer.center_feature_scale:
                torch.nn.init.normal_(layer.center_feature_scale_proj_weight)
    recording = record(backbone, images(1, 3, 64, 96))
    layers = [layer for stage in recording.stages for layer in stage]
    assert len(seen) == len(layers) == sum(backbone.depths)
    for (value, output), layer in zip(seen, layers, strict=True):
        groups = layer.weights.shape[2]
        regular = torch.stack(torch.meshgrid(*map(torch.arange, value.shape[1:3]), indexing='ij'))
        assert (layer.points - regular.flip(0).permute(1, 2, 0)[:, :, None, None]).abs().max() > 1.5
        for channel in range(value.shape[-1] // groups):  # the same one of each group
            values, outputs = (
                t[0].unflatten(-1, (groups, -1))[..., channel] for t in (value, output)
            )
            expected = weighted_sum(layer, values.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


def test_trace_is_the_gradient_of_the_layers_that_move_something():
    backbone = small_backbone()
    recording = record(backbone, images(1, 3, 64, 96))
    stage, block, column, row = 2, 1, 3, 2
    image = torch.ones(1, 1, 64, 96, requires_grad=True)

    def moved(x, taps):
        return F.conv2d(x, taps[None, None], stride=2, padding=1)

    x = moved(moved(image, recording.stem[0]), recording.stem[1])
    for s in range(stage + 1):
        for layer in recording.stages[s][: block + 1 if s == stage else None]:
            groups = layer.weights.shape[2]
            x = weighted_sum(layer, x.expand(-1, groups, -1, -1)).mean(1, keepdim=True)
        if s < stage:
            x = moved(x, recording.downsamplings[s])
    (expected,) = torch.autograd.grad(x[0, 0, row, column], image)
    trace = recording.trace(stage, block, column, row)
    assert 0.2 < trace.sum() <= 1
    torch.testing.assert_close(trace, expected[0, 0], rtol=1e-4, atol=1e-7)


def test_nearest_pixel():
    recording = record(small_backbone(), images(1, 3, 64, 96))
    # Convolutions of stride 2 and padding 1 have their centre at even pixels.
    assert recording.pixel(0, 9.9, 14.1) == (2, 4)
    assert recording.pixel(3, 95, 63) == (2, 1)


def test_receptive_field_is_the_gradient():
    backbone, image = small_backbone(norm_layer='BN'), images(1, 3, 64, 96)
    field = receptive_field(backbone, image, stage=0, block=1, column=10, row=6)
    taken = image.clone().requires_grad_()
    x = backbone.patch_embed(taken)
    for block in backbone.levels[0].blocks:
        x = block(x)
    (gradient,) = torch.autograd.grad(x[0, 6, 10].relu().sum(), taken)
    torch.testing.assert_close(field, gradient.clamp(min=0).sum((0, 1)))
    assert field.max() > 0


def test_composite_backbone():
    """The lead one, whose features the heads get."""
    backbone = looking_around(CBInternImage(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8]))
    image = images(1, 3, 64, 64)
    recording = record(backbone, image)
    assert [len(stage) for stage in recording.stages] == [1, 1, 2, 1]
    lead = backbone.cb_modules[1].levels[0].blocks[0].dcn
    inputs = []
    lead.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    backbone(image)
    weights = lead.mask(lead.dw_conv(inputs[0].permute(0, 3, 1, 2)))[0].softmax(-1)
    torch.testing.assert_close(recording.stages[0][0].weights[:, :, 0], weights)
    assert recording.trace(2, 1, 2, 2).sum() > 0.2
    assert receptive_field(backbone, image, 2, 1, 2, 2).max() > 0


def test_areas_by_hand():
    even = areas(torch.ones(11, 11), 5, 5)
    assert even == pytest.approx({0.2: 25 / 121, 0.3: 49 / 121, 0.5: 81 / 121, 0.99: 1})
    single = torch.zeros(9, 20)
    single[4, 7] = 3
    assert set(areas(single, 7, 4).values()) == {1 / 180}
    single[4, 5] = 1  # two columns away: a square of 25 pixels
    assert areas(single, 7, 4) == pytest.approx(
        {0.2: 1 / 180, 0.3: 1 / 180, 0.5: 1 / 180, 0.99: 25 / 180}
    )
    corner = torch.ones(4, 4)  # of squares that leave the image, the part inside
    assert areas(corner, 0, 0) == pytest.approx({0.2: 4 / 16, 0.3: 9 / 16, 0.5: 9 / 16, 0.99: 1})


def test_wrong_arguments():
    with pytest.raises(ValueError, match='Linear has no InternImage'):
        record(torch.nn.Linear(2, 2), images(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r'shape \(1, 3, H, W\), got \(2, 3, 64, 64\)'):
        record(small_backbone(), images(2, 3, 64, 64))

"""Constructor arguments other than sizes, and training behaviour."""

import inspect

import numpy as np
import pytest
import torch
from backbones.helpers import (
    GRADIENT_VARIANTS,
    TINY,
    golden_backbone,
    images,
    tiny,
    with_golden_weights,
)
from torch import nn

from internimage_mm import CBInternImage, InternImage
from internimage_mm.backbones.internimage import DropPath
from ops_dcnv3 import DCNv3

# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(pretrained='x', init_cfg=[]), 'give init_cfg or pretrained, not both'),
        (dict(arch='nano'), r"unknown arch 'nano'; known are tiny \(t\), .*giant"),
        (dict(depths=[1, 1, 1]), r'depths must have 4 entries, got \[1, 1, 1\]'),
        (dict(groups=[1] * 5), r'groups must have 4 entries, got \[1, 1, 1, 1, 1\]'),
        (dict(depths=[1, 0, 1, 1]), r'depths must be positive, got \[1, 0, 1, 1\]'),
        (dict(channels=15), 'channels must be a positive even number, got 15'),
        (dict(channels=0), 'channels must be a positive even number, got 0'),
        (
            dict(groups=[1, 3, 4, 8]),
            r'stage 1 has 32 channels and 3 groups \(channels=16, groups=\[1, 3, 4, 8\]\)',
        ),
        (dict(groups=[0, 2, 4, 8]), 'stage 0 has 16 channels and 0 groups'),
        (dict(core_op='DCNv4'), r"DCNv3, DCNv3_pytorch, got 'DCNv4'"),
        (dict(drop_path_type='cosine'), "linear or uniform, got 'cosine'"),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\), got 1\.0'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate must be in \[0, 1\), got -0\.1'),
        (dict(frozen_stages=5), 'frozen_stages must be between -1 and 4, got 5'),
        (dict(frozen_stages=-2), 'frozen_stages must be between -1 and 4, got -2'),
        (dict(out_indices=()), r'out_indices must be .* from 0 to 3, got \(\)'),
        (dict(out_indices=4), 'out_indices must be .*, got 4'),
        (dict(out_indices=-5), 'out_indices must be .*, got -5'),
        (dict(out_indices=[0, 4]), r'out_indices must be .*, got \[0, 4\]'),
        (dict(out_indices=[3, -1]), r'out_indices must be different.*\[3, -1\]'),
        (dict(act_layer='Mish'), "act_layer must be one of GELU, ReLU, SiLU, got 'Mish'"),
        (dict(norm_layer='GN'), "norm_layer must be one of LN, BN, got 'GN'"),
        (dict(dw_kernel_size=4), 'dw_kernel_size must be odd, got 4'),
        *(
            (
                dict(level2_post_norm=True, level2_post_norm_block_ids=ids),
                'level2_post_norm needs .* the 3 blocks of stage 2, got',
            )
            for ids in (None, [], [3], [-1], [1, 1])
        ),
    ],
)
def test_wrong_values(settings, match):
    with pytest.raises(ValueError, match=match):
        tiny(**settings)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(arc='tiny'), "unexpected keyword argument 'arc'"),
        (dict(pretrained=3), 'pretrained must be a path or URL or None, got 3'),
        (dict(channels=16.0), r'channels must be an int, got 16\.0'),
        (dict(depths=4), 'depths must be a sequence of ints, got 4'),
        (dict(out_indices='a'), "out_indices must be a sequence of ints, got 'a'"),
    ],
)
def test_wrong_types(settings, match):
    with pytest.raises(TypeError, match=match):
        tiny(**settings)


@pytest.mark.parametrize('backbone', [InternImage, CBInternImage])
def test_signature_is_explicit(backbone):
    parameters = inspect.signature(backbone).parameters
    assert parameters.keys() >= {*InternImage.DEFAULTS, 'arch', 'init_cfg', 'pretrained'}
    kinds = {parameter.kind for parameter in parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert str(parameters['depths']).endswith('= unless_arch([3, 4, 18, 5])')


@pytest.mark.parametrize('backbone', [InternImage, CBInternImage])
def test_pretrained_is_an_init_cfg(backbone):
    """As of mmdet's Swin; configs of mmdet 3 that were made from older ones have it."""
    with torch.device('meta'):
        model = backbone(**TINY, pretrained='weights.pth')
    assert model.init_cfg == dict(type='Pretrained', checkpoint='weights.pth')
    with pytest.raises(FileNotFoundError, match=r'weights\.pth'):
        model.init_weights()


# ---- out_indices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [
        (0, [0]),
        (3, [3]),
        (-1, [3]),
        ([-1], [3]),
        ((1, -1), [1, 3]),
        ([3, 0], [0, 3]),
        ([-4, -3, -2, -1], [0, 1, 2, 3]),
    ],
)
def test_out_indices(out_indices, stages):
    x = images(1, 3, 33, 47)
    model = with_golden_weights(tiny(out_indices=out_indices)).eval()
    with torch.no_grad():
        outputs = model(x)
        every = with_golden_weights(tiny()).eval()(x)
    assert isinstance(outputs, tuple) and len(outputs) == len(stages)
    assert all(torch.equal(output, every[i]) for output, i in zip(outputs, stages, strict=True))
    assert model.out_channels == [o.shape[1] for o in outputs]
    # No stage is left out of the state dict: official checkpoints have all.
    assert model.state_dict().keys() == tiny().state_dict().keys()


# ---- modes --------------------------------------------------------------------------------------


def test_train_and_eval_return_the_model():
    model = tiny(frozen_stages=1, norm_eval=True)
    assert model.train() is model and model.training
    assert model.train(False) is model and not model.training
    assert model.train().eval() is model and not model.training


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages):
    torch.manual_seed(0)
    settings = dict(norm_layer='BN', drop_path_rate=0.0, frozen_stages=frozen_stages)
    model = with_golden_weights(tiny(**settings))
    frozen = tuple(f'levels.{i}.' for i in range(frozen_stages))
    if frozen_stages >= 0:
        frozen += ('patch_embed.',)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):  # the second time after eval() and train(), as around validation
        assert {k for k, p in model.named_parameters() if not p.requires_grad} == {
            k for k in before if k.startswith(frozen) and 'running' not in k and 'num_b' not in k
        }
        for name, module in model.named_modules():
            assert module.training != f'{name}.'.startswith(frozen), name
        model.eval()
        assert not any(m.training for m in model.modules())
        model.train()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = images(2, 3, 64, 64).requires_grad_()  # with everything frozen, nothing else would
    sum(o.mul(images(*o.shape, seed=1)).sum() for o in model(inputs)).backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        # Parameters, running statistics and counters of frozen parts, and nothing else, stay.
        assert torch.equal(value, before[key]) == key.startswith(frozen), key


def test_norm_eval():
    torch.manual_seed(0)
    model = tiny(norm_layer='BN', norm_eval=True, drop_path_rate=0.5).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 + 3 + sum(model.depths)  # stem, downsampling, depth-wise branches
    assert not any(m.training for m in norms)
    assert all(m.training for m in model.modules() if not isinstance(m, nn.BatchNorm2d))
    statistics = {k: v.clone() for k, v in model.named_buffers()}
    assert statistics
    sum(o.sum() for o in model(images(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, statistics[k]) for k, v in model.named_buffers())
    assert all(m.weight.grad is not None for m in norms)

    plain = tiny(norm_layer='BN').train()
    assert all(m.training for m in plain.modules())


# ---- stochastic depth and dropout ---------------------------------------------------------------


def drop_path_rates(model):
    return [block.drop_path.rate for level in model.levels for block in level.blocks]


def test_drop_path_rates():
    linear = tiny(drop_path_rate=0.4)
    np.testing.assert_allclose(drop_path_rates(linear), np.linspace(0, 0.4, 7), rtol=1e-12)
    assert drop_path_rates(tiny(drop_path_rate=0.4, drop_path_type='uniform')) == [0.4] * 7
    assert drop_path_rates(tiny())[-1] == pytest.approx(0.2)  # official default
    assert drop_path_rates(tiny(depths=[1, 1, 1, 1], drop_path_rate=0.0)) == [0.0] * 4


def test_drop_path_statistics():
    torch.manual_seed(0)
    samples, rate = 4000, 0.25
    x = images(samples, 2, 3, 4)
    ratio = DropPath(rate).train()(x) / x
    per_sample = ratio[:, 0, 0, 0]
    torch.testing.assert_close(ratio, per_sample[:, None, None, None].expand_as(ratio))
    kept = per_sample != 0
    torch.testing.assert_close(per_sample[kept], torch.full((int(kept.sum()),), 1 / (1 - rate)))
    # Five standard errors of the mean of samples that are 0 or 1 / (1 - rate).
    error = (rate / (1 - rate) / samples) ** 0.5
    assert per_sample.mean().item() == pytest.approx(1, abs=5 * error)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero():
    x = images(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


@pytest.mark.parametrize('settings', [dict(layer_scale=1.0), dict(post_norm=True)])
def test_dropped_branches_leave_the_residual_stream(settings):
    model = tiny(drop_path_rate=1 - 1e-9, drop_path_type='uniform', **settings).train()
    x = images(2, 5, 6, 16)
    for block in model.levels[0].blocks:
        assert torch.equal(block(x), x)
        assert not torch.equal(block.eval()(x), x)


def test_drop_rate():
    torch.manual_seed(0)
    model = with_golden_weights(tiny(drop_rate=0.5, drop_path_rate=0.0))
    assert model.pos_drop.p == 0.5
    assert all(b.mlp.drop.p == 0.5 for level in model.levels for b in level.blocks)
    x = images(1, 3, 33, 47)
    with torch.no_grad():
        expected = with_golden_weights(tiny()).eval()(x)
        assert not torch.equal(model.train()(x)[0], expected[0])
        assert all(map(torch.equal, model.eval()(x), expected))


# ---- with_cp ------------------------------------------------------------------------------------


def count_op_calls(model):
    calls = []
    for layer in model.modules():
        if isinstance(layer, DCNv3):
            layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_with_cp_recomputes_blocks_in_the_backward_pass():
    model = tiny(with_cp=True)
    calls = count_op_calls(model)
    outputs = model(images(1, 3, 33, 47))
    assert len(calls) == sum(model.depths)
    sum(o.sum() for o in outputs).backward()
    assert len(calls) == 2 * sum(model.depths)


def test_with_cp_only_where_the_input_requires_gradients():
    # The first block of the first level sees no gradient when the stem has none.
    model = tiny(with_cp=True, frozen_stages=1)
    model.patch_embed.requires_grad_(False)
    calls = count_op_calls(model)
    sum(o.sum() for o in model(images(1, 3, 33, 47))[1:]).backward()
    trained = sum(model.depths[1:])
    assert len(calls) == model.depths[0] + trained + trained - 1


@pytest.mark.parametrize('name', GRADIENT_VARIANTS)
def test_with_cp_draws_the_same_drop_path(name):
    x = images(4, 3, 64, 64)
    gradients = []
    for with_cp in (False, True):
        model = golden_backbone(name, drop_path_rate=0.5, with_cp=with_cp).train()
        torch.manual_seed(0)
        sum(o.sum() for o in model(x)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))
    # The draw matters: another one gives other gradients.
    model.zero_grad()
    torch.manual_seed(1)
    sum(o.sum() for o in model(x)).backward()
    assert not all(map(torch.equal, gradients[0], [p.grad for p in model.parameters()]))


# ---- other official arguments -------------------------------------------------------------------


def test_use_dcn_v4_op_has_no_effect():
    x = images(1, 3, 33, 47)
    with torch.no_grad():
        outputs = with_golden_weights(tiny(use_dcn_v4_op=True)).eval()(x)
        expected = with_golden_weights(tiny()).eval()(x)
    assert all(map(torch.equal, outputs, expected))


def test_remove_center():
    model = tiny(remove_center=True)
    dcn = model.levels[1].blocks[0].dcn
    assert dcn.offset.weight.shape == (2 * 8 * 2, 32)
    assert dcn.mask.weight.shape == (2 * 8, 32)


@pytest.mark.parametrize(('act_layer', 'kind'), [('ReLU', nn.ReLU), ('SiLU', nn.SiLU)])
def test_act_layer(act_layer, kind):
    model = tiny(act_layer=act_layer)
    activations = [m for m in model.modules() if isinstance(m, (nn.GELU, nn.ReLU, nn.SiLU))]
    assert len(activations) == 1 + 2 * sum(model.depths)  # stem; depth-wise branches and MLPs
    assert all(type(m) is kind for m in activations)
    assert all(
        m.approximate == 'none' for m in tiny().modules() if isinstance(m, nn.GELU)
    )  # the official one is exact


def test_mlp_ratio_and_layer_scale():
    model = tiny(mlp_ratio=2.5, layer_scale=1e-5)
    assert model.levels[1].blocks[0].mlp.fc1.weight.shape == (80, 32)
    assert (model.levels[1].blocks[0].gamma1 == 1e-5).all()

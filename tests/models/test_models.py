"""``create_model`` and what it returns, against official outputs and the backbone alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.deterministic_weights import tensor_for
from torch.testing import assert_close

from internimage_mm import create_model
from internimage_mm.checkpoint import CheckpointError
from internimage_mm.checkpoint.imagenet_22k import INDICES_1K_IN_22K
from internimage_mm.models import InternImageClassifier, extract_features
from internimage_mm.models.factory import weights_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'classification'
SMALL = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8])


def small(name='internimage_t', pretrained=False, **settings):
    torch.manual_seed(1)
    return create_model(name, pretrained, **{**SMALL, **settings})


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """An official classification checkpoint of the golden reduced T, its settings and weights."""
    return golden_file('cls_t_like', tmp_path_factory.mktemp('official'))


def golden_file(name, folder):
    golden = json.loads((GOLDEN / f'{name}.json').read_text())
    weights = {k: torch.from_numpy(tensor_for(k, *spec)) for k, *spec in golden['keys']}
    torch.save({'model': weights, 'epoch': 3}, folder / f'{name}.pth')
    settings = golden['config']
    settings.pop('core_op')
    settings.pop('use_clip_projector', None)
    return str(folder / f'{name}.pth'), settings, weights


@pytest.mark.parametrize('name', ['cls_t_like', 'cls_h_like', 'cls_h_like_remove_center'])
def test_logits_equal_the_official_ones(name, tmp_path):
    """As in tests/cls/test_golden.py, where the bound is explained."""
    path, settings, weights = golden_file(name, tmp_path)
    arch = 'huge' if '_h_' in name else 'tiny'
    model = create_model(f'internimage_{arch}', path, **settings).eval()
    model.load_state_dict(weights)  # official names do
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((1, 3, 128, 160))
    with torch.no_grad():
        logits = model(torch.from_numpy(noise.astype(np.float32))).numpy()
    bound = json.loads((GOLDEN / f'{name}.json').read_text())['check']['128x160']
    error = np.abs(logits - np.load(GOLDEN / f'{name}.npz')['logits_128x160']).max()
    assert error <= 2 * bound['f32_vs_f64_max_abs']


# ---- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'out_indices, stages',
    [((0, 1, 2, 3), [0, 1, 2, 3]), ((2, -3), [1, 2]), (2, [2, 3]), ([0], [0])],
)
def test_features_are_those_of_the_backbone(out_indices, stages, images):
    model = small(features_only=True, out_indices=out_indices).eval()
    outputs = model(images)
    every = small().backbone.eval()(images)
    for output, stage in zip(outputs, stages, strict=True):
        assert torch.equal(output, every[stage])
    info = model.feature_info
    assert info.channels() == [o.shape[1] for o in outputs]
    assert info.reduction() == [64 // o.shape[2] for o in outputs]
    # What would be computed for nothing is not there.
    assert len(model.backbone.levels) == stages[-1] + 1
    assert model.backbone.levels[-1].downsample is None


@pytest.mark.parametrize('name', ['internimage_t', 'internimage_h'])
def test_intermediates(name, images):
    deep = dict(depths=[1, 1, 6, 1], level2_post_norm_block_ids=[5]) if name[-1] == 'h' else {}
    model = small(name, **deep).eval()
    every = model.backbone(images)
    final, features = model.forward_intermediates(images, (1, 3))
    assert torch.equal(final, model.forward_features(images))
    assert all(map(torch.equal, features, (every[1], every[3])))
    early, features = model.forward_intermediates(images, [0], stop_early=True)
    assert early is features[0] and torch.equal(early, every[0])
    (only,) = model.forward_intermediates(images, 1, intermediates_only=True)
    assert torch.equal(only, every[3])
    assert torch.equal(model.forward_head(final), model(images))


@pytest.mark.parametrize(
    'call, match',
    [
        (lambda: create_model('internimage_q'), "unknown arch 'q'"),
        (lambda: small(features_only=True, out_indices=(4,)), 'stages from 0 to 3, .* got'),
        (lambda: small(features_only=True, out_indices=()), 'stages from 0 to 3, .* got'),
        (lambda: small(num_classes=5, global_pool=''), "global_pool='' needs num_classes=0"),
        (lambda: small(global_pool='map'), "global_pool must be 'avg' or ''"),
        (lambda: extract_features(small(), torch.rand(1, 3, 32, 32), ['levels.7']), 'levels.7'),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_features_by_official_names(images):
    model = small(num_classes=7).eval()
    found = extract_features(model, images, ['patch_embed', 'levels.0.downsample', 'head'])
    stem = model.backbone.patch_embed(images)
    assert torch.equal(found['patch_embed'], stem)
    assert torch.equal(found['levels.0.downsample'], model.backbone.levels[0](stem)[0])
    assert torch.equal(found['head'], model(images))
    assert not any(module._forward_hooks for module in model.modules())


# ---- weights ------------------------------------------------------------------------------------


def test_another_number_of_classes(official):
    path, settings, weights = official
    model = create_model('internimage_t', path, **{**settings, 'num_classes': 3})
    assert model.head.fc.weight.shape == (3, 384)
    assert torch.equal(model.neck.conv_head[0].weight, weights['conv_head.0.weight'])
    model = create_model('t', path, **{**settings, 'num_classes': 0})
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 384)


@pytest.mark.parametrize('features_only', [False, True])
def test_one_channel_sees_grey_as_three_do(official, features_only):
    """Before and after the change of channels, grey images give the same: an exact property."""
    path, settings, _ = official
    settings = dict(settings, features_only=features_only)
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = [
        create_model('t', path, in_chans=n, **settings).eval()(grey.expand(1, n, 64, 64))
        for n in (3, 1, 6)
    ]
    for other in outputs[1:]:
        assert_close(other, outputs[0], rtol=1e-4, atol=1e-4)


def test_1000_of_the_22k_classes(official, tmp_path):
    path, settings, weights = official
    rows = torch.arange(21841.0)
    weights = {**weights, 'head.weight': rows[:, None].repeat(1, 384), 'head.bias': rows}
    torch.save({'model': weights}, tmp_path / '22k.pth')
    model = create_model('t', str(tmp_path / '22k.pth'), **{**settings, 'num_classes': 1000})
    assert model.head.fc.bias.tolist() == list(INDICES_1K_IN_22K)


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_backbone_of_a_detector_or_alone(official, prefix, tmp_path):
    _, settings, weights = official
    trunk = {f'{prefix}{k}': v for k, v in weights.items() if k.startswith(('patch', 'levels'))}
    others = {'rpn_head.rpn_conv.weight': torch.rand(2)} if prefix else {}
    torch.save({'state_dict': {**trunk, **others}}, tmp_path / 'detector.pth')
    path = str(tmp_path / 'detector.pth')
    for features_only in (False, True):
        model = create_model('t', path, features_only=features_only, **settings)
        for name, weight in model.backbone.state_dict().items():
            assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize('features_only', [False, True])
def test_file_without_layer_scale(official, features_only, tmp_path):
    """As the released ImageNet file of T is, whose scales then are one."""
    _, settings, weights = official
    weights = {k: v for k, v in weights.items() if '.gamma' not in k}
    torch.save({'model': weights}, tmp_path / 't.pth')
    model = create_model('t', str(tmp_path / 't.pth'), features_only=features_only, **settings)
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(weight, weights.get(name, torch.ones_like(weight))), name
    if not features_only:
        assert torch.equal(model.head.fc.weight, weights['head.weight'])


def test_wrong_backbone_is_an_error(official):
    with pytest.raises(CheckpointError, match='does not fit'):
        create_model('internimage_s', official[0], num_classes=20)


def test_names_of_the_zoo():
    """Addresses from the metafiles."""
    release = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    assert weights_of('tiny', True) == release + 'internimage_t_1k_224.pth'
    assert weights_of('huge', True) == release + 'internimage_h_22kto1k_640.pth'
    detector = 'mask-rcnn_internimage-t_fpn_1x_coco'
    assert weights_of('tiny', detector) == release + 'mask_rcnn_internimage_t_fpn_1x_coco.pth'
    assert weights_of('tiny', 'my.pth') == 'my.pth'
    assert weights_of('tiny', False) is None
    with pytest.raises(ValueError, match='no weights'):
        weights_of('huge', 'internimage-h_joint-in22k-pre_8xb128-20e_in1k-384')


def test_parameters_of_the_released_sizes():
    """As published, except that T here also has layer scales."""
    with torch.device('meta'):
        model = InternImageClassifier('tiny')
    scales = sum(p.numel() for n, p in model.named_parameters() if 'gamma' in n)
    assert sum(p.numel() for p in model.parameters()) - scales == 29918424


# ---- training -----------------------------------------------------------------------------------


def test_checkpointing_leaves_the_gradients(images):
    gradients = []
    for enable in (False, True):
        model = small(num_classes=4)
        model.set_grad_checkpointing(enable)
        model(images).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(gradients[1], gradients[0])


def test_without_mmengine(official, tmp_path):
    """A program that has torch alone loads what mmengine saved, log history included."""
    from mmengine.logging import HistoryBuffer

    path, settings, weights = official
    history = HistoryBuffer([1.0], [1])
    torch.save({'state_dict': weights, 'message_hub': {'loss': history}}, tmp_path / 'epoch_1.pth')
    code = """
import json, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm'):
    sys.modules[name] = None  # as if it were not installed
import internimage_mm
import torch
model = internimage_mm.create_model('internimage_t', sys.argv[1], **json.loads(sys.argv[2]))
print(model.eval()(torch.full((1, 3, 64, 64), 0.5)).sum().item())
internimage_mm.CBInternImage
"""
    command = [sys.executable, '-c', code, str(tmp_path / 'epoch_1.pth'), json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    model = create_model('internimage_t', path, **settings).eval()
    assert float(result.stdout) == model(torch.full((1, 3, 64, 64), 0.5)).sum().item()


@pytest.mark.parametrize('name, steps', [('unet', 2), ('detr', 2)])
def test_examples_of_the_docs(name, steps):
    command = [sys.executable, str(ROOT / 'docs' / 'examples' / f'{name}.py'), str(steps)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(('IoU', 'mean error'))

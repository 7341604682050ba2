"""Our classifiers against the official ones: logits, names and parameter counts.

The golden files hold the float32 and float64 logits of the official code under deterministic
weights. As of the backbone (tests/backbones/test_golden.py), our float32 logits may be twice as far
from the official float32 ones as those are from float64.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from golden.deterministic_weights import tensor_for
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import internimage_mm.cls  # noqa: F401  registers
from internimage_mm.checkpoint import convert_official, fit_state_dict

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / 'tests' / 'golden'
VARIANTS = sorted(path.stem for path in (GOLDEN / 'classification').glob('cls_*.json'))
PARAM_COUNTS = json.loads(
    gzip.decompress((GOLDEN / 'optimizer' / 'param_counts_classification.json.gz').read_bytes())
)
OUTPUT_FACTOR = 2

RELEASED = {
    model['Converted From']['Code'].split('/classification/configs/')[1]: model
    for folder in ('imagenet', 'inaturalist2018')
    for model in yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
}
BASES = {
    'cls_t_like': 'internimage-t_8xb512_in1k-224.py',
    'cls_h_like': 'internimage-h_joint-in22k-pre_32xb16-20e_in1k-640.py',
    'cls_h_like_remove_center': 'internimage-h_joint-in22k-pre_32xb16-20e_in1k-640.py',
}


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


def golden(name):
    return json.loads((GOLDEN / 'classification' / f'{name}.json').read_text())


def reduced_config(name):
    """Our config of the same model family, with the reductions of the golden case."""
    official = dict(golden(name)['config'])
    num_classes = official.pop('num_classes')
    clip = official.pop('use_clip_projector', False)
    # The files say the plain PyTorch backend; ours runs on whichever is the default.
    official.pop('core_op')
    cfg = Config.fromfile(ROOT / 'configs' / 'imagenet' / BASES[name])
    cfg.model.backbone.update(official)
    channels = official['channels'] * 8
    if clip:
        cfg.model.neck.in_channels = [channels // 2, channels]
    else:
        cfg.model.neck.update(in_channels=channels, out_channels=int(1.5 * channels))
        cfg.model.head.in_channels = int(1.5 * channels)
    cfg.model.head.num_classes = num_classes
    return cfg


def golden_model(name):
    """The classifier with the golden weights, from official names through our converter."""
    model = build(reduced_config(name))
    weights = {k: torch.from_numpy(tensor_for(k, *spec)) for k, *spec in golden(name)['keys']}
    model.load_state_dict(fit_state_dict({'model': weights}, model, 'golden'))  # strict
    return model.eval()


def image(size):
    height, width = map(int, size.split('x'))
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((1, 3, height, width))
    return torch.from_numpy(noise.astype(np.float32))


def test_the_noise_image_is_the_stored_one():
    with np.load(GOLDEN / 'classification' / 'image_128x160.npz') as arrays:
        assert (image('128x160').numpy() == arrays['image']).all()


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('size', ['128x160', '224x224'])
def test_logits_equal_the_official_ones(name, size):
    arrays = np.load(GOLDEN / 'classification' / f'{name}.npz')
    distance = golden(name)['check'][size]['f32_vs_f64_max_abs']
    model = golden_model(name)
    with torch.no_grad():
        logits = model(image(size), mode='tensor')
        logits64 = model.double()(image(size).double(), mode='tensor')
    error = np.abs(logits.numpy() - arrays[f'logits_{size}']).max()
    error64 = np.abs(logits64.numpy() - arrays[f'logits_f64_{size}']).max()
    assert error <= OUTPUT_FACTOR * distance
    assert error64 <= 1e-12


@pytest.mark.parametrize('name', VARIANTS)
def test_official_names_and_shapes_of_the_reduced_model(name):
    model = build(reduced_config(name))
    ours = convert_official({k: torch.empty(s) for k, s, _ in golden(name)['keys']})
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert sum(p.numel() for p in model.parameters()) == golden(name)['num_params']


@pytest.mark.parametrize('official', RELEASED)
def test_released_model_has_the_official_names_shapes_and_size(official):
    model = RELEASED[official]
    cfg = Config.fromfile(ROOT / model['Config'])
    with torch.device('meta'):
        built = build(cfg)
    names = {k: tuple(v.shape) for k, v in built.state_dict().items()}
    assert sum(p.numel() for p in built.parameters()) == model['Metadata']['Parameters']
    file = PARAM_COUNTS[official.removeprefix('without_lr_decay/')]
    expected = {k: torch.empty(shape, device='meta') for k, shape in file['keys_shapes'].items()}
    if cfg.model.head.num_classes == 1000:
        assert model['Metadata']['Parameters'] == file['total']
        assert {k: tuple(v.shape) for k, v in convert_official(expected).items()} == names
    else:
        # The recorded model has 1000 classes and no metadata branch.
        others = {k for k in names if not k.startswith('head.')}
        converted = convert_official(expected)
        assert {k: tuple(converted[k].shape) for k in others} == {k: names[k] for k in others}


def test_every_official_config_has_one_of_ours():
    assert len(RELEASED) == 16
    assert {k.removeprefix('without_lr_decay/') for k in RELEASED} == PARAM_COUNTS.keys()

"""``arch`` against the official configs: settings, names, shapes and numbers of parameters."""

import functools
import gzip
import json
import re

import pytest
import torch
from backbones.helpers import tiny
from golden_optim import GOLDEN_DIR, golden_optim_names, load_golden_optim

from internimage_mm import CBInternImage, InternImage
from internimage_mm.backbones.presets import ALIASES, ARCHITECTURES

CLASSIFICATION = json.loads(
    gzip.decompress((GOLDEN_DIR / 'param_counts_classification.json.gz').read_bytes())
)
OFFICIAL = {
    f'{tree}/{config}': entry
    for tree in ('detection', 'segmentation')
    for config, entry in json.loads((GOLDEN_DIR / f'param_counts_{tree}.json').read_text()).items()
    if entry['backbone']['type'] == 'InternImage'
}
# What an official config may set that is not part of a size: its schedule and its use.
NOT_IN_PRESET = {'type', 'drop_path_rate', 'out_indices', 'mlp_ratio'}


def alias_of(config):
    return re.search(r'internimage_(t|s|b|l|xl|h|g)_', config).group(1)


@functools.cache
def shapes(arch, layer_scale='preset'):
    """Names and shapes of a preset's state dict, in order."""
    changes = {} if layer_scale == 'preset' else {'layer_scale': layer_scale}
    with torch.device('meta'):
        model = InternImage(arch, **changes)
    return [(k, list(v.shape)) for k, v in model.state_dict().items()]


def num_parameters(arch):
    return sum(torch.Size(shape).numel() for _, shape in shapes(arch))


def test_every_size_is_in_the_official_data():
    assert {alias_of(config) for config in OFFICIAL} == set(ALIASES)
    assert {alias_of(config) for config in CLASSIFICATION} == set(ALIASES)
    assert {alias_of(name) for name in golden_optim_names()} == set(ALIASES)


@pytest.mark.parametrize('config', OFFICIAL)
def test_settings_and_parameter_count(config):
    arch, official = alias_of(config), OFFICIAL[config]
    settings = {k: v for k, v in official['backbone'].items() if k not in NOT_IN_PRESET}
    preset = ARCHITECTURES[ALIASES[arch]]
    assert {k: preset.get(k, InternImage.DEFAULTS[k]) for k in settings} == settings
    # Nothing in the preset beyond the config, other than defaults.
    assert all(v == InternImage.DEFAULTS[k] for k, v in preset.items() if k not in settings)
    assert official['backbone']['mlp_ratio'] == InternImage.DEFAULTS['mlp_ratio']
    assert num_parameters(arch) == official['children']['backbone']


@pytest.mark.parametrize('name', golden_optim_names())
def test_names_and_shapes_in_official_models(name):
    official = [
        (k.removeprefix('backbone.'), shape)
        for k, shape in load_golden_optim(name)['shapes'].items()
        if k.startswith('backbone.')
    ]
    if 'cbinternimage' in name:
        with torch.device('meta'):
            model = CBInternImage(arch=alias_of(name))
        assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == official
    else:
        assert shapes(alias_of(name)) == official


@pytest.mark.parametrize('config', CLASSIFICATION)
def test_trunk_of_official_classifiers(config):
    arch, official = alias_of(config), CLASSIFICATION[config]
    layer_scale = official['config']['layer_scale']
    trunk = [
        (k, shape)
        for k, shape in official['keys_shapes'].items()
        if k.startswith(('patch_embed.', 'levels.'))
    ]
    assert shapes(arch, layer_scale) == trunk
    preset = ARCHITECTURES[ALIASES[arch]]
    for key, value in preset.items():
        if key != 'layer_scale':
            assert official['config'][key] == value, key
    # Without layer scale in the classifier, and only for T, the preset has gammas on top.
    extra = [k for k, _ in shapes(arch) if k not in dict(trunk)]
    assert extra == [
        f'levels.{i}.blocks.{j}.gamma{n}'
        for i, depth in enumerate(preset['depths'])
        for j in range(depth)
        for n in (1, 2)
        if arch == 't'
    ]


@pytest.mark.parametrize('alias', ALIASES)
def test_features_of_every_size(alias):
    with torch.device('meta'):
        model = InternImage(alias).eval()
        features = model(torch.empty(2, 3, 64, 96))
    channels = ARCHITECTURES[ALIASES[alias]]['channels']
    assert [tuple(f.shape) for f in features] == [
        (2, channels, 16, 24),
        (2, channels * 2, 8, 12),
        (2, channels * 4, 4, 6),
        (2, channels * 8, 2, 3),
    ]
    assert model.out_channels == [f.shape[1] for f in features]


@pytest.mark.parametrize('arch', ['tiny', 'TINY', 't', 'T'])
def test_names_of_a_preset(arch):
    with torch.device('meta'):
        state = InternImage(arch).state_dict()
    assert [(k, list(v.shape)) for k, v in state.items()] == shapes('tiny')


def test_single_arguments_override_the_preset():
    with torch.device('meta'):
        model = InternImage('large', depths=[1, 1, 2, 1], layer_scale=None, post_norm=False)
    assert model.depths == [1, 1, 2, 1]
    assert (model.channels, model.groups) == (160, [10, 20, 40, 80])
    names = model.state_dict().keys()
    assert not any('gamma' in k for k in names)
    assert 'levels.0.norm.0.weight' in names
    assert model.levels[0].blocks[0].dcn.offset_scale == 2.0


def test_a_preset_may_set_activation_and_norm(monkeypatch):
    preset = dict(ARCHITECTURES['tiny'], act_layer='SiLU', norm_layer='BN')
    monkeypatch.setitem(ARCHITECTURES, 'tiny', preset)
    with torch.device('meta'):
        kinds = {type(module).__name__ for module in InternImage('tiny').modules()}
    assert {'SiLU', 'BatchNorm2d'} <= kinds and 'GELU' not in kinds


def test_models_do_not_share_lists_with_presets_or_configs():
    depths = [1, 1, 1, 1]
    with torch.device('meta'):
        InternImage('tiny').depths.append(7)
        InternImage('tiny').groups.append(7)
        tiny(depths=depths).depths.append(7)
    assert ARCHITECTURES['tiny']['depths'] == [4, 4, 18, 4]
    assert ARCHITECTURES['tiny']['groups'] == [4, 8, 16, 32]
    assert depths == [1, 1, 1, 1]

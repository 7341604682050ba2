"""Every config: the official checkpoint of the full-size model has exactly the model's weights."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from checkpoint.helpers import CLASSIFIERS, official_shapes
from golden_optim import GOLDEN_DIR, golden_optim_names
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from internimage_mm.checkpoint.convert import convert

ROOT = Path(__file__).parents[2]
MODELS_OF_METAFILES = {
    model['Config']: model['Converted From']['Code'].split('/', 7)[7]
    for path in sorted(ROOT.glob('configs/*/metafile.yml'))
    for model in yaml.safe_load(path.read_text())['Models']
}

# The golden list of iNaturalist 2018 is that of the image branch with 1000 classes. This is what
# classification/models/intern_image_meta_former.py adds to it.
META_BRANCH = {
    'meta_head_1.0.weight': [64, 4],
    'meta_head_2.0.weight': [64, 3],
    'meta_norm.weight': [128],
    'meta_norm.bias': [128],
    'meta_head.weight': [8142, 128],
    'meta_head.bias': [8142],
    'head.weight': [8142, 768],
    'head.bias': [8142],
    **{f'meta_head_{i}.0.bias': [64] for i in (1, 2)},
    **{f'meta_head_{i}.2.{p}': [64] for i in (1, 2) for p in ('weight', 'bias')},
    **{
        f'meta_head_{i}.3.{layer}.{p}': [64, 64] if (layer[0], p) == ('w', 'weight') else [64]
        for i in (1, 2)
        for layer in ('w1', 'w2', 'norm_fn1', 'norm_fn2')
        for p in ('weight', 'bias')
    },
}


def golden_shapes(official_path):
    """Name to shape of all weights; None if there is no list of this config."""
    tree, _, name = official_path.split('/', 2)
    if tree == 'classification':
        # Configs without layer decay are of the same models.
        name = name.replace('without_lr_decay/', '')
        if name not in CLASSIFIERS:
            return None
        branch = META_BRANCH if name.startswith('inaturalist2018/') else {}
        return {**official_shapes(name), **branch}
    name = f'{tree}__{name.removesuffix(".py").replace("/", "__")}'
    return official_shapes(name) if name in golden_optim_names() else None


def golden_number_of_tensors(official_path):
    tree, _, name = official_path.split('/', 2)
    counts = json.loads((GOLDEN_DIR / f'param_counts_{tree}.json').read_text())
    return counts[name]['n_tensors']


def shapes(state_dict):
    return {name: list(tensor.shape) for name, tensor in state_dict.items()}


def test_there_are_all_of_them():
    assert len(MODELS_OF_METAFILES) == len(set(MODELS_OF_METAFILES.values())) == 67


@pytest.mark.parametrize('config', MODELS_OF_METAFILES)
def test_official_weights_are_those_of_the_model(config):
    cfg = Config.fromfile(ROOT / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = shapes(MODELS.build(cfg.model).state_dict())
    empty = {name: torch.empty(shape, device='meta') for name, shape in model.items()}
    official = convert(empty, 'official')
    assert official.left_over == []
    official_path = MODELS_OF_METAFILES[config]
    expected = golden_shapes(official_path)
    if expected is not None:
        assert shapes(official.state_dict) == expected
    else:
        assert len(official.state_dict) == golden_number_of_tensors(official_path)
    ours = convert(official.state_dict, 'ours')
    assert ours.left_over == []
    assert shapes(ours.state_dict) == model

"""A config in a form in which two that mean the same are equal."""

import json

from internimage_mm.backbones import InternImage
from internimage_mm.backbones.presets import architecture

_SETTINGS = (
    'auto_scale_lr custom_hooks custom_imports default_hooks default_scope env_cfg load_from '
    'log_level log_processor model optim_wrapper param_scheduler resume test_cfg test_dataloader '
    'test_evaluator test_with_tta train_cfg train_dataloader tta_model tta_pipeline val_cfg '
    'val_dataloader val_evaluator visualizer'
)


def normal(cfg):
    """What a runner reads of a config, as nested dicts and lists.

    Presets of the backbone are written out, paths of data sets joined, tuples are lists.
    """
    settings = json.loads(json.dumps({key: cfg[key] for key in _SETTINGS.split() if key in cfg}))
    backbone = settings['model']['backbone']
    if backbone['type'] in ('InternImage', 'CBInternImage'):
        preset = architecture(backbone.pop('arch')) if 'arch' in backbone else {}
        settings['model']['backbone'] = {**InternImage.DEFAULTS, **preset, **backbone}
    for split in ('train', 'val', 'test'):
        for leaf in leaf_datasets(settings[f'{split}_dataloader']['dataset']):
            _join_paths(leaf)
    return settings


def leaf_datasets(dataset):
    """The data sets inside all wrappers."""
    if 'datasets' in dataset:
        return [leaf for inner in dataset['datasets'] for leaf in leaf_datasets(inner)]
    return leaf_datasets(dataset['dataset']) if 'dataset' in dataset else [dataset]


def _join_paths(leaf):
    root = leaf.pop('data_root', '')
    root = root if not root or root.endswith('/') else f'{root}/'
    for key in [key for key in leaf if key.endswith('_file')]:
        leaf[key] = root + leaf[key]
    leaf['data_prefix'] = {
        key: (root + value).rstrip('/') for key, value in leaf['data_prefix'].items()
    }

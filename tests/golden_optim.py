"""Golden optimizers of the official release: read one, build its parameters, compare with it."""

import gzip
import json
from pathlib import Path

import torch
from torch import nn

GOLDEN_DIR = Path(__file__).parent / 'golden' / 'optimizer'


def golden_optim_names():
    """Names of the golden files, without ``.json.gz``."""
    return sorted(
        path.name.removesuffix('.json.gz')
        for tree in ('detection', 'segmentation')
        for path in GOLDEN_DIR.glob(f'{tree}__*.json.gz')
    )


def load_golden_optim(name):
    """One golden file: ``optimizer``, ``groups``, ``params`` and ``shapes`` among its keys."""
    with gzip.open(GOLDEN_DIR / f'{name}.json.gz', 'rt') as file:
        return json.load(file)


def module_with_parameters(shapes, device='meta'):
    """A module whose parameters have exactly these dotted names and shapes, and nothing else."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split('.')
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, nn.Parameter(torch.empty(shape, device=device)))
    return root


def golden_module(golden):
    """The parameters of the golden model, without its buffers, on the meta device."""
    shapes = {name: s for name, s in golden['shapes'].items() if name in golden['params']}
    return module_with_parameters(shapes)


def golden_optim_wrapper_cfg(golden):
    """The released optimizer settings as an mmengine ``optim_wrapper`` config."""
    optimizer = dict(golden['optimizer'])
    return {
        'type': 'OptimWrapper',
        'constructor': optimizer.pop('constructor'),
        'paramwise_cfg': optimizer.pop('paramwise_cfg'),
        'optimizer': optimizer,
    }


def summarize_optimizer(model, optimizer):
    """``(groups, params)`` of a ``torch.optim.Optimizer``, in the golden file's terms.

    Names come from the tensors themselves, not from the group's own list, which must agree.
    """
    name_of = {id(param): name for name, param in model.named_parameters()}
    groups, params = {}, {}
    for group in optimizer.param_groups:
        key = group['group_name']
        assert key not in groups, f'two groups are called {key}'
        values = {k: group[k] for k in ('lr', 'weight_decay', 'lr_scale')}
        names = [name_of[id(param)] for param in group['params']]
        assert names == group['param_names']
        groups[key] = {'n': len(names), **values}
        for name in names:
            assert name not in params, f'{name} is in two groups'
            params[name] = {**values, 'group': key}
    return groups, params


def assert_matches_golden(model, optimizer, golden):
    """Groups and parameters, with every learning rate and weight decay, equal the golden ones."""
    groups, params = summarize_optimizer(model, optimizer)
    assert params == golden['params']
    assert groups == golden['groups']

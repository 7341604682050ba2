"""Our configs and the models they build."""

import contextlib
import copy
import functools
import importlib
import json

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .zoo import ROOT, models


@functools.cache
def parse(config):
    """One of our configs, by its path in the repository."""
    return Config.fromfile(ROOT / config)


def load(official):
    """Our config that stands for an official one."""
    return parse(models()[official]['Config'])


@contextlib.contextmanager
def default_scope(cfg):
    """The registries as the tools have them with this config."""
    utils = importlib.import_module(f'{cfg.default_scope}.utils')
    utils.register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


_built = {}


def build_on_meta(official):
    """The model of a config at full size without memory for its parameters.

    Configs with the same model get the same object: leave it as it is.
    """
    cfg = load(official)
    key = json.dumps(cfg.model)
    if key not in _built:
        with default_scope(cfg), torch.device('meta'):
            _built[key] = MODELS.build(copy.deepcopy(cfg.model))  # building changes it
    return _built[key]

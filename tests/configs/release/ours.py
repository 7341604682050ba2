"""Our configs and the models they build."""

import contextlib
import copy
import functools
import importlib

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .zoo import ROOT, models


@functools.cache
def load(official):
    """Our config that stands for an official one."""
    return Config.fromfile(ROOT / models()[official]['Config'])


@contextlib.contextmanager
def default_scope(cfg):
    """The registries as the tools have them with this config."""
    utils = importlib.import_module(f'{cfg.default_scope}.utils')
    utils.register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


@functools.lru_cache(maxsize=2)  # they are built one after the other; giants are not kept
def build_on_meta(official):
    """The model of a config at full size without memory for its parameters."""
    cfg = load(official)
    with default_scope(cfg), torch.device('meta'):
        return MODELS.build(copy.deepcopy(cfg.model))  # building changes it

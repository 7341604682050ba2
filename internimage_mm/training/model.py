"""Building the model of a config, with one line for a mistake in it."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import ops_dcnv3

from ..errors import UserError

_OURS = (Path(__file__).parents[1], Path(ops_dcnv3.__file__).parent)
_REGISTRY = Path(mmengine.registry.__file__).parent


def _is_ours(file: Path) -> bool:
    return any(folder in file.parents for folder in _OURS)


@contextmanager
def reports_model_errors() -> Iterator[None]:
    """Turn what a wrong ``model`` of a config raises when it is built into a :class:`UserError`.

    That is what the registry raises (a type that it does not know, an argument that a class does
    not take or lacks) and what our classes raise when it calls them. All else may be a mistake in
    someone's code and passes with its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        files = [Path(frame.filename) for frame in frames]
        # From where the error was raised, back to what the registry called; empty if it raised it.
        since = list(takewhile(lambda file: _REGISTRY not in file.parents, reversed(files)))
        ours = not since or (_is_ours(since[0]) and _is_ours(since[-1]))
        if not ours or (since and isinstance(error, KeyError)):
            raise
        message = str(error.args[0]).partition('\n')[0]
        raise UserError(
            f'the model of the config cannot be built: {message} (raised in '
            f'{frames[-1].filename}, line {frames[-1].lineno})'
        ) from error


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config as mmengine's runner does, on the current default device.

    The config's default scope becomes the current one.

    Raises:
        UserError: The model of the config is wrong.
    """
    if scope := cfg.get('default_scope'):
        init_default_scope(scope)
    model = copy.deepcopy(cfg.model)  # mmdet's DINO writes into it
    if preprocessor := cfg.get('data_preprocessor'):  # where mmpretrain's own configs have it
        model.setdefault('data_preprocessor', preprocessor)
    with reports_model_errors():
        return MODELS.build(model)

"""Reading a config and the options that override it."""

import difflib
import importlib.util
import inspect
import os.path as osp
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
)
from mmengine.runner import Runner

from ..errors import UserError
from ..output_file import check_folder

_SHOWN = 6  # places listed in a message
_LIBRARIES = {
    'mmdet': 'mmdet==3.3.0',
    'mmseg': 'mmsegmentation==1.2.2',
    'mmpretrain': 'mmpretrain==1.2.0',
}
# What mmengine's runner or our tools read of a config.
_READ = {
    *inspect.signature(Runner).parameters,
    *('activation_checkpointing', 'compile', 'efficient_conv_bn_eval', 'find_unused_parameters'),
    *('model_wrapper_cfg', 'shard', 'sync_bn', 'test_with_tta', 'tta_model', 'tta_pipeline'),
}
# What builds the parts of a config that a user sets.
_REGISTRIES = (MODELS, DATASETS, TRANSFORMS, HOOKS, OPTIMIZERS, PARAM_SCHEDULERS, LOOPS, METRICS)


def load_config(path: str, options: dict | None = None, work_dir: str | None = None) -> Config:
    """Read a config and apply what the command line sets.

    Args:
        path: The config file.
        options: ``--cfg-options``.
        work_dir: ``--work-dir``; default: that of the config, else ``work_dirs/<config name>``.

    Raises:
        UserError: No such file, not Python, a missing ``_base_``, the library that it is for
            (mmdet, mmseg or mmpretrain) is not installed, nothing reads one of the options, or the
            work dir is no folder.
    """
    if not osp.isfile(path):
        raise UserError(f'config {path} does not exist{_similar_configs(path)}')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise UserError(
            f'config {path} (or one of its _base_ files) is not valid Python: {error.msg} '
            f'(line {error.lineno}: {(error.text or "").strip()})'
        ) from error
    except (ConfigParsingError, OSError, AssertionError, ValueError) as error:
        hint = ''
        if 'internimage_mm::' in Path(path).read_text(errors='replace'):
            hint = (
                "; one of our configs is inherited by its path: internimage_mm.config_path('...')"
            )
        raise UserError(f'config {path} cannot be read: {error}{hint}') from error
    if 'model' not in cfg:
        raise UserError(f'config {path} has no "model"; is it a file of configs/_base_?')
    scope = cfg.get('default_scope')
    if scope in _LIBRARIES and importlib.util.find_spec(scope) is None:
        raise UserError(f'config {path} needs {scope}: pip install "{_LIBRARIES[scope]}"')
    _apply(options or {}, cfg, path)
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(path).stem)
    check_folder(cfg.work_dir)
    return cfg


def _apply(options: dict, cfg: Config, path: str) -> None:
    for option in options:
        nothing = f'--cfg-options {option}=... would change nothing: '
        first = option.split('.')[0]
        if first not in cfg and first not in _READ:
            hint = _nearest(first, {*cfg, *_READ}, 0.6)
            raise UserError(f'{nothing}config {path} has no {first}{hint}')
        if first in cfg and first not in _READ:
            places = sorted(  # stable
                _uses_of(first, cfg), key=lambda place: place.split('.')[-1] != first
            )
            shown = (
                f'. Its value is in {", ".join(places[:_SHOWN])}'
                f'{", ..." if len(places) > _SHOWN else ""}: set what you mean of these'
            )
            raise UserError(
                f'{nothing}{first} is a variable of config {path}, which has used it already'
                f'{shown if places else ""}'
            )
        if misspelt := _misspelt(option, options, cfg):
            part, hint = misspelt
            raise UserError(
                f'--cfg-options {option}=...: there is no {part} in config {path}{hint}'
            )
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        raise UserError(f'--cfg-options do not fit config {path}: {error.args[0]}') from error


def _misspelt(option: str, options: dict, cfg: Config) -> tuple[str, str] | None:
    """A key in an option that is new to the config but almost another one, and a hint at that.

    Other new keys may be what a class takes, or what a library takes out before it builds one.
    """
    first, *rest = option.split('.')
    node, place = cfg.get(first), first
    for part in rest:
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif not isinstance(node, dict):
            return None
        elif part in node:
            node = node[part]
        else:
            kind = options.get(f'{place}.type', node.get('type'))
            taken = _arguments(kind, cfg.get('default_scope'))
            hint = '' if part in taken else _nearest(part, {*node, *taken}, 0.8)
            return (part, hint) if hint else None
        place = f'{place}.{part}'
    return None


def _arguments(kind: Any, scope: str | None) -> set[str]:
    """The arguments of what is registered as ``kind``, and of its bases, which get the rest."""
    names: set[str] = set()
    for root in _REGISTRIES if isinstance(kind, str) else ():
        with root.switch_scope_and_registry(scope) as registry:
            for cls in getattr(registry.get(kind), '__mro__', ()):
                names.update(inspect.signature(cls.__init__).parameters)
    return names


def _uses_of(variable: str, cfg: Config) -> Iterator[str]:
    """Where a config has the value of a variable and is written with it."""
    pattern = rf'(\w+)[\'"]?\s*[=:][^=:]*?\b{variable}\b(?!\s*=)'
    keys = set(re.findall(pattern, cfg.text))
    for place in _places_of(cfg[variable], {k: v for k, v in cfg.items() if k in _READ}):
        if keys & set(place.split('.')):
            yield place


def _places_of(value: Any, node: Any, place: str = '') -> Iterator[str]:
    """Where a value is in a config, or a text that begins with it (``data_root``)."""
    begins = isinstance(value, str) and value and isinstance(node, str) and node.startswith(value)
    if begins or (type(node) is type(value) and node == value):
        yield place
    elif isinstance(node, (dict, list, tuple)):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _places_of(value, inner, f'{place}.{key}' if place else str(key))


def _nearest(name: str, names: Iterable[str], cutoff: float) -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f'; do you mean {found[0]}?' if found else ''


def _similar_configs(path: str) -> str:
    folder = Path(path).parent
    if found := sorted(Path('configs').glob(f'*/{Path(path).name}')):
        return f'; do you mean {found[0]}?'
    names = [p.name for p in folder.glob('*.py')] if folder.is_dir() else []
    similar = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.3)
    if similar:
        return f'; in {folder} there are {", ".join(similar)}'
    return '' if folder.is_dir() else f' (nor does the folder {folder})'

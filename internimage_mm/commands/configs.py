"""Reading a config and the options that override it."""

import difflib
import importlib.util
import inspect
import os.path as osp
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.runner import Runner

from ..errors import UserError

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
    *('model_wrapper_cfg', 'sync_bn', 'test_with_tta', 'tta_model', 'tta_pipeline'),
}


class ConfigOptions(DictAction):
    """The action of ``--cfg-options``; a malformed setting is an error of usage, no traceback."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, SyntaxError) as error:
            parser.error(f'{option_string} takes KEY=VALUE pairs, got {" ".join(values)} ({error})')


def load_config(path: str, options: dict | None = None, work_dir: str | None = None) -> Config:
    """Read a config and apply what the command line sets.

    Args:
        path: The config file.
        options: ``--cfg-options``.
        work_dir: ``--work-dir``; default: that of the config, else ``work_dirs/<config name>``.

    Raises:
        UserError: No such file, not Python, a missing ``_base_``, the library that it is for
            (mmdet, mmseg or mmpretrain) is not installed, or nothing reads one of the options.
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
    _apply(options or {}, cfg, path)
    scope = cfg.get('default_scope')
    if scope in _LIBRARIES and importlib.util.find_spec(scope) is None:
        raise UserError(f'config {path} needs {scope}: pip install "{_LIBRARIES[scope]}"')
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(path).stem)
    return cfg


def _apply(options: dict, cfg: Config, path: str) -> None:
    for option in options:
        nothing = f'--cfg-options {option}=... would change nothing: '
        first, *rest = option.split('.')
        if first not in cfg and first not in _READ:
            hint = _nearest(first, {*cfg, *_READ}, 0.6)
            raise UserError(f'{nothing}config {path} has no {first}{hint}')
        if first in cfg and first not in _READ:
            read = {key: value for key, value in cfg.items() if key in _READ}
            places = sorted(  # stable
                _places_of(cfg[first], read), key=lambda place: place.split('.')[-1] != first
            )
            shown = (
                f'. Its value is in {", ".join(places[:_SHOWN])}'
                f'{", ..." if len(places) > _SHOWN else ""}: set what you mean of these'
            )
            raise UserError(
                f'{nothing}{first} is a variable of config {path}, which has used it already'
                f'{shown if places else ""}'
            )
        node = cfg.get(first)
        for part in rest[:-1]:
            if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
                continue
            if not isinstance(node, dict):
                break
            if part not in node and (hint := _nearest(part, node, 0.8)):
                raise UserError(f'{nothing}there is no {part} in config {path}{hint}')
            node = node.get(part)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        raise UserError(f'--cfg-options do not fit config {path}: {error.args[0]}') from error


def _places_of(value: Any, node: Any, place: str = '') -> Iterator[str]:
    """Where in a config a variable's value is, or a text that begins with it (``data_root``)."""
    if value is None or isinstance(value, bool):
        return  # such values are anywhere
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

"""Reading a config of the old stack, with the ``_base_`` files of its tree, and writing one."""

import keyword
import os.path as osp
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

from ..errors import UserError

_NEW_STYLE = (
    'default_scope optim_wrapper param_scheduler test_dataloader train_cfg train_dataloader '
    'val_evaluator'
)
_WIDTH = 85


def read_old_config(path: str) -> dict:
    """Read an old config and everything it inherits, as plain dicts, lists and tuples.

    Args:
        path: A ``.py`` file of the old stack. Like mmcv, this runs the Python code in it.

    Raises:
        UserError: It cannot be read, or :func:`check_old_style` finds no whole old config.
    """
    if not osp.isfile(path):
        raise UserError(f'config {path} does not exist')
    if Path(path).suffix != '.py':
        raise UserError(
            f'config {path} is no Python config; classification configs (YAML) are not migrated: '
            'configs/imagenet has every official one'
        )
    one_of_them = f'config {path} (or one of its _base_ files)'
    try:
        old = Config.fromfile(path, import_custom_modules=False, lazy_import=False).to_dict()
    except SyntaxError as error:
        line = f'line {error.lineno}: {(error.text or "").strip()}'
        raise UserError(f'{one_of_them} is not valid Python: {error.msg} ({line})') from error
    except (ConfigParsingError, OSError, ImportError) as error:
        raise UserError(
            f'config {path} cannot be read: {error}. It inherits from files of the official '
            'repository: leave it where it is in that tree'
        ) from error
    except Exception as error:  # whatever the code of a config raises
        raise UserError(f'{one_of_them} raises {type(error).__name__}: {error}') from error
    check_old_style(old, path)
    return old


def check_old_style(old: dict, path: str = 'the config') -> None:
    """Raise a :class:`UserError` unless ``old`` is a whole config of the old stack."""
    if new := [key for key in _NEW_STYLE.split() if key in old]:
        raise UserError(
            f"{path} is a config of mmengine, today's stack, already: it has {', '.join(new)}"
        )
    if missing := [key for key in ('model', 'data') if not isinstance(old.get(key), dict)]:
        raise UserError(
            f'{path} is no whole config of the old stack: it has no {" and no ".join(missing)}'
        )


class Name(str):
    """A value that is a variable of the config, written without quotes."""


def format_config(config: dict[str, Any], header: str = '') -> str:
    """A Python file with one assignment per key of ``config``, below ``header`` as a comment."""
    blocks = [f'# {header}'] if header else []
    for key, value in config.items():
        text = _format(value, 0)
        blocks.append(f'\n{key} = {text}' if '\n' in text else f'{key} = {text}')
    return '\n'.join(blocks) + '\n'


def _format(value: Any, indent: int) -> str:
    """On one line if that is short enough, else one line per item."""
    if isinstance(value, Name):
        return str(value)
    if not isinstance(value, (dict, list, tuple)) or not value:
        return repr(value)
    if isinstance(value, list) and len(value) > 12 and value[:-1] == value[:1] * (len(value) - 1):
        return f'[{value[0]!r}] * {len(value) - 1} + [{value[-1]!r}]'
    if isinstance(value, dict):
        call = all(str(key).isidentifier() and not keyword.iskeyword(str(key)) for key in value)
        opening, label, closing = ('dict(', '{}=', ')') if call else ('{', '{!r}: ', '}')
        items = [label.format(key) + _format(item, indent + 4) for key, item in value.items()]
    else:
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [_format(item, indent + 4) for item in value]
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    line = f'{opening}{", ".join(items)}{comma}{closing}'
    if indent + len(line) < _WIDTH and '\n' not in line:
        return line
    margin = ' ' * indent
    return f'{opening}\n' + ''.join(f'{margin}    {item},\n' for item in items) + margin + closing

"""Reading a config of the old stack: mmcv 1.x style, ``_base_`` files from its own tree."""

import os.path as osp
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

from ..errors import UserError

_NEW_STYLE = {
    'default_scope',
    'optim_wrapper',
    'param_scheduler',
    'test_dataloader',
    'train_cfg',
    'train_dataloader',
    'val_evaluator',
}


def read_old_config(path: str) -> dict:
    """Read an old config and everything it inherits.

    Args:
        path: A ``.py`` file of the old stack. Like mmcv, this runs the Python code in it.

    Returns:
        Plain dicts, lists and tuples.

    Raises:
        UserError: There is no such file, it is not Python, one of its ``_base_`` files is missing,
            its code raises, it is for today's stack already, or no config of a detector or
            segmentor.
    """
    if not osp.isfile(path):
        raise UserError(f'config {path} does not exist')
    if Path(path).suffix in ('.yaml', '.yml'):
        raise UserError(
            f'{path} is a classification config; only the Python configs of detection and '
            'segmentation are migrated. configs/imagenet has every official classification config'
        )
    if Path(path).suffix != '.py':
        raise UserError(f'config {path} is no Python config: its name must end in .py')
    try:
        old = Config.fromfile(path, import_custom_modules=False, lazy_import=False).to_dict()
    except SyntaxError as error:
        raise UserError(
            f'config {path} (or one of its _base_ files) is not valid Python: {error.msg} '
            f'(line {error.lineno}: {(error.text or "").strip()})'
        ) from error
    except (ConfigParsingError, OSError, ImportError) as error:
        raise UserError(
            f'config {path} cannot be read: {error}. It inherits from files of the official '
            'repository: leave it where it is in that tree'
        ) from error
    except Exception as error:  # whatever the code of a config raises
        raise UserError(
            f'config {path} (or one of its _base_ files) raises {type(error).__name__}: {error}'
        ) from error
    check_old_style(old, path)
    return old


def check_old_style(old: dict, path: str = 'the config') -> None:
    """Raise a :class:`UserError` unless ``old`` is a whole config of the old stack."""
    if new := sorted(_NEW_STYLE & old.keys()):
        raise UserError(
            f"{path} is a config of mmengine, today's stack, already: it has {', '.join(new)}"
        )
    if missing := [key for key in ('model', 'data') if not isinstance(old.get(key), dict)]:
        raise UserError(
            f'{path} is no whole config of the old stack: it has no {" and no ".join(missing)}'
        )

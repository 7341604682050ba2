"""Where the configs of this package are, in an installation as in the sources, and the zoo."""

import difflib
import functools
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def config_path(name: str) -> str:
    """The absolute path of one of our configs.

    For a config of your own, anywhere, that inherits one of ours::

        _base_ = __import__('internimage_mm').config_path(
            'coco/mask-rcnn_internimage-t_fpn_1x_coco.py'
        )

    (mmengine's ``package::config`` is not for this: it looks up every type of such a config in the
    registry of that package alone, so that ``MaskRCNN`` would have to be ours, not mmdet's.)

    Args:
        name: The file, below ``configs``; with or without ``.py``.

    Raises:
        ValueError: There is no such config; the message names similar ones.
    """
    folder = _configs()
    path = folder / (name if name.endswith('.py') else f'{name}.py')
    if not path.is_file():
        known = [p.relative_to(folder).as_posix() for p in folder.glob('*/*.py')]
        similar = difflib.get_close_matches(name, known, 3, 0.3)
        raise ValueError(
            f'there is no config {name} in {folder}; there are, for example, '
            f'{", ".join(similar or known[:3])}'
        )
    return str(path)


@functools.cache
def released_models() -> dict[str, dict[str, Any]]:
    """Every model of the zoo: name to its entry in the metafiles (``Config``, ``Weights``, ...)."""
    import yaml

    root = _configs().parent
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    files = [yaml.safe_load((root / name).read_text()) for name in index['Import']]
    return {model['Name']: model for file in files for model in file['Models']}


def _configs() -> Path:
    for folder in (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs'):
        if folder.is_dir():
            return folder.resolve()
    raise ValueError(f'this installation has no configs; expected at {_PACKAGE}/.mim/configs')

"""Writing files that are complete or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def output_file(target: str | Path) -> Path:
    """The file that writing to ``target`` makes or replaces: what a symbolic link names, else it.

    Commands that work for long before they write call it first.

    Raises:
        OSError: There is something other than a regular file: a folder, a FIFO, a device.
    """
    path = Path(os.path.realpath(target))
    if os.path.lexists(path) and not path.is_file():
        raise OSError('it exists and is not a regular file')
    return path


@contextmanager
def renamed_when_complete(target: str | Path) -> Iterator[Path]:
    """Give a name to write to, and rename what was written if nothing is raised.

    Args:
        target: The file to make or replace, and the folders that it is in. A symbolic link stays,
            and the file that it names is written.

    Raises:
        OSError: As :func:`output_file`; or the file cannot be renamed.
    """
    path = output_file(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.unfinished')
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def folder_moved_when_complete(target: str | Path) -> Iterator[Path]:
    """The same for a file that is written with others beside it, which are named after it."""
    path = output_file(target)
    with tempfile.TemporaryDirectory(prefix=f'{path.name}.', dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        # The file that names the others comes last.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == unfinished):
            os.replace(file, path.with_name(file.name))


def check_output(path: str | Path, source: str | Path | None = None) -> None:
    """Check that a file can be written, before long work.

    Raises:
        UserError: There is something at ``path`` that is no regular file, its folder cannot be
            made, or it is the file ``source``, which is to be kept.
    """
    try:
        output_file(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error
    check_folder(Path(path).parent)
    if source and os.path.exists(path) and os.path.samefile(path, source):
        raise UserError(f'{path} cannot be written: it is the file that is read')


def check_folder(path: str | Path) -> None:
    """Raise a :class:`UserError` if ``path`` or what it is in exists and is no folder."""
    for folder in (Path(path), *Path(path).parents):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f'{path} cannot be a folder: {folder} exists and is none')


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, and the folders that it is in; it is complete or not there.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with renamed_when_complete(path) as unfinished:
            unfinished.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error

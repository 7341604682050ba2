"""Writing files that are complete or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def renamed_when_complete(target: Path) -> Iterator[Path]:
    """Give a name beside ``target`` to write to, and rename what was written if nothing is raised.

    Args:
        target: The file to make or replace; its folder exists.

    Raises:
        OSError: The file cannot be renamed: ``target`` is a folder.
    """
    unfinished = target.with_name(f'{target.name}.unfinished')
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)

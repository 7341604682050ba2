"""Writing a generated data set so that its folder is either complete or not there."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from .drawing import image_rng

# Raise it when the same settings come to mean other files.
FORMAT_VERSION = 1
SETTINGS_FILE = 'mini_dataset.json'


Images = Iterable[tuple[int, np.random.Generator]]
"""Index and random numbers of every image of a split."""


def write_dataset(
    root: str | Path,
    name: str,
    write_split: Callable[[Path, str, Images], None],
    num_train: int,
    num_val: int,
    seed: int,
    overwrite: bool,
    show_progress: bool,
) -> bool:
    """Writes a data set into a temporary folder next to ``root``; renames it when it is complete.

    The same arguments give the same bytes with the same numpy and OpenCV, and an image does not
    depend on how many there are.

    Args:
        root: Folder of the data set. It appears when the data set is complete.
        name: Kind of data set, written into its settings.
        write_split: Writes one split, ``'train'`` or ``'val'``, into the folder that it gets.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        seed: Seed, at least 0. Both splits are drawn from it and never share an image.
        overwrite: Replace a generated data set with other settings in ``root``.
        show_progress: Show a progress bar.

    Returns:
        True if the data set was written, False if ``root`` already holds one with these settings.

    Raises:
        TypeError: A number is not an int.
        ValueError: A number of images is below 1 or the seed is negative.
        FileExistsError: ``root`` holds a data set with other settings and ``overwrite`` is False,
            or something that is not a generated data set, which is never overwritten.
    """
    settings: dict[str, str | int] = {'num_train': num_train, 'num_val': num_val, 'seed': seed}
    for key, least in (('num_train', 1), ('num_val', 1), ('seed', 0)):
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f'{key} must be an int, got {value!r} ({type(value).__name__})')
        if value < least:
            raise ValueError(f'{key} must be at least {least}, got {value}')
    settings = {'dataset': name, 'format_version': FORMAT_VERSION, **settings}

    # Resolved, so that a link to another disk stays one and the temporary folder is on that disk.
    root = Path(root).resolve()
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied:
        found = _read_settings(root)
        if found == settings:
            return False
        if not overwrite:
            different = ', '.join(
                f'{key} {found.get(key)} instead of {value}'
                for key, value in settings.items()
                if found.get(key) != value
            )
            raise FileExistsError(
                f'{root} holds a data set with {different}; '
                'the option overwrite replaces it; or choose another folder'
            )

    root.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    partial = root.with_name(f'.{root.name}.{token}.partial')
    replaced = root.with_name(f'.{root.name}.{token}.replaced')
    try:
        partial.mkdir()
        for split, count in (('train', num_train), ('val', num_val)):
            indices = track(range(count), f'{name} {split}', disable=not show_progress)
            write_split(partial, split, ((i, image_rng(seed, split, i)) for i in indices))
        (partial / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + '\n')
        if occupied:
            root.rename(replaced)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    return True


def _read_settings(root: Path) -> dict:
    path = root / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileExistsError(
            f'{root} exists and is not a generated mini data set (it has no readable '
            f'{SETTINGS_FILE}); it is not overwritten: move it away or choose another folder'
        ) from error
    return settings


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes a uint8 (h, w, 3) or (h, w) image as JPEG of quality 95 or PNG, by the suffix."""
    # Encode and write apart: cv2.imwrite answers a full disk with False.
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == '.jpg' else []
    encoded = cv2.imencode(path.suffix, image, options)[1]
    path.write_bytes(encoded.tobytes())

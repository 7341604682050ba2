"""From a path or an address to the object that a checkpoint file holds."""

import os
import os.path as osp
import pickle
import re
import warnings
import zipfile
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from .allowed_types import ALLOWED

TRAINING_STATE = 'training_state.pth'
"""In the folder of a sharded training's checkpoint, the file with all but the tensors."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model; the message says why."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint file that is not there."""


def read_checkpoint(path: str, map_location: Any = 'cpu', mmap: bool = False) -> dict:
    """Read a checkpoint with PyTorch's safe loader (``weights_only=True``), never another way.

    Args:
        path: A local file, an ``http(s)`` address (kept in the cache of ``torch.hub``), or an
            address of another mmengine file backend. ``.safetensors`` files need the
            ``safetensors`` package. Of the folder that a sharded training saves, the weights are
            read and the optimizer state is not; its metadata may name no other types than it needs.
        map_location: As of :func:`torch.load`. Default: ``'cpu'``.
        mmap: Leave the tensors in the file until they are used. Not for files that may be changed
            meanwhile. Without effect on files of PyTorch before 1.6. Default: False.

    Returns:
        The dict that the file holds.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file cannot be downloaded, is truncated or no checkpoint at all, has
            names that are no text, or needs Python objects that the safe loader refuses (the
            message lists them).
    """
    path = str(path)
    if path.startswith(('http://', 'https://')):
        return _read_file(_download(path), path, map_location, mmap)
    if '://' in path:
        from mmengine.fileio import get_local_path

        with get_local_path(path) as local_path:
            return _read_file(local_path, path, map_location, mmap=False)
    return _read_file(osp.expanduser(path), path, map_location, mmap)


def _download(url: str) -> str:
    path = osp.join(torch.hub.get_dir(), 'checkpoints', osp.basename(urlparse(url).path))
    error = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not osp.isfile(path):
        os.makedirs(osp.dirname(path), exist_ok=True)
        try:
            # Writes to a temporary name and renames, so an interrupted download leaves no file.
            torch.hub.download_url_to_file(url, path)
        except (URLError, OSError) as exc:
            error = exc
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    if error is not None:
        raise CheckpointError(f'{url} cannot be downloaded: {error}') from error
    return path


def _read_file(path: str, name: str, map_location: Any, mmap: bool) -> dict:
    if not osp.exists(path):
        raise CheckpointNotFoundError(f'checkpoint {name} does not exist')
    if osp.isfile(osp.join(path, TRAINING_STATE)):
        return _read_sharded(path)
    if not osp.isfile(path):
        raise CheckpointError(f'checkpoint {name} is a directory or device; a file is needed')
    if name != path:
        name = f'{name} (file {path})'
    with open(path, 'rb') as file:
        start = file.read(40)
    if path.endswith('.safetensors'):
        checkpoint = _read_safetensors(path, name, map_location)
    elif start and not start.startswith((b'PK', b'\x80')):  # neither a zip file nor a pickle
        raise CheckpointError(
            f'{name} is not a checkpoint: it begins with {start!r}, as a web page or a text does'
        )
    else:
        checkpoint = _read_torch(path, name, map_location, mmap and zipfile.is_zipfile(path))
    check_names(checkpoint, name)
    return checkpoint


class _MetadataUnpickler(pickle.Unpickler):
    """Refuses what the metadata of tensors does not need."""

    NEEDED = re.compile(
        r'torch\.distributed\.checkpoint\.metadata '
        r'((Bytes|Tensor|Chunk)StorageMetadata|Metadata|MetadataIndex|StorageMeta|TensorProperties'
        r'|_MEM_FORMAT_ENCODING)|torch\.distributed\.checkpoint\.filesystem _StorageInfo'
        r'|torch\.serialization _get_layout|torch (Size|[a-z]*\d\w*|bool)|pathlib\S* \w+Path'
    )

    def find_class(self, module: str, name: str) -> Any:
        if not self.NEEDED.fullmatch(f'{module} {name}'):
            raise pickle.UnpicklingError(f'.metadata uses {module}.{name}, which is refused')
        return super().find_class(module, name)


class _ShardReader(dcp.FileSystemReader):
    """Reads the metadata, a pickle, without running what else could be in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with open(osp.join(self.path, '.metadata'), 'rb') as file:
            _MetadataUnpickler(file).load()
        return super().read_metadata(*args, **kwargs)


def _read_sharded(folder: str) -> dict:
    checkpoint = _read_file(osp.join(folder, TRAINING_STATE), folder, 'cpu', mmap=False)
    try:
        reader = _ShardReader(folder)
        tensors = reader.read_metadata().state_dict_metadata
        weights = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in tensors.items()
            if name.startswith('state_dict.') and isinstance(tensor, TensorStorageMetadata)
        }
        with warnings.catch_warnings():  # that it is not distributed, which it is told
            warnings.simplefilter('ignore', UserWarning)
            dcp.load(weights, storage_reader=reader, no_dist=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f'{folder}: {error}') from error
    except (dcp.CheckpointException, OSError) as error:
        raise CheckpointError(f'{folder} is incomplete: {error}') from error
    return {
        **checkpoint,
        'state_dict': {name.removeprefix('state_dict.'): t for name, t in weights.items()},
    }


def check_names(state_dict: Any, source: str) -> None:
    """Raise :class:`CheckpointError` unless this is a dict whose keys are all text."""
    if not isinstance(state_dict, dict):
        raise CheckpointError(
            f'{source} holds a {type(state_dict).__name__}; a dict with the weights is needed'
        )
    name = next((k for k in state_dict if not isinstance(k, str)), None)
    if name is not None:
        raise CheckpointError(f'{source}: names of weights must be text, there is {name!r}')


def _read_torch(path: str, name: str, map_location: Any, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as exc:
        # A damaged file surfaces as any of a dozen exception types, from KeyError to RuntimeError.
        reason = str(exc) or type(exc).__name__
        if isinstance(exc, pickle.UnpicklingError):
            # PyTorch wraps the reason in the advice to switch the safe loader off.
            reason = reason.rpartition('WeightsUnpickler error: ')[2]
        reason = reason.strip().splitlines()[0]
        whole = zipfile.is_zipfile(path) or 'Unsupported global' in reason
        if isinstance(exc, pickle.UnpicklingError) and whole:
            raise CheckpointError(
                f'{name} holds Python objects that may run code when loaded, which is refused: '
                f'{", ".join(_refused_objects(path)) or reason}. If you trust where it came from, '
                'load it once with torch.load(file, weights_only=False) and save only its weights'
            ) from exc
        raise CheckpointError(
            f'{name} is truncated or not a PyTorch checkpoint '
            f'({osp.getsize(path)} bytes; {reason}); copy or download it again'
        ) from exc


def _refused_objects(path: str) -> list[str]:
    """Names of the objects in the file that neither PyTorch nor we allow-list."""
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except ValueError:  # the format of PyTorch < 1.6 cannot be listed
        return []


def _read_safetensors(path: str, name: str, map_location: Any) -> dict:
    try:
        import safetensors.torch
    except ImportError as exc:
        raise CheckpointError(
            f'{name} needs the safetensors package: pip install safetensors'
        ) from exc
    try:
        return safetensors.torch.load_file(path, device=str(map_location or 'cpu'))
    except Exception as exc:
        raise CheckpointError(
            f'{name} is truncated or not a safetensors file '
            f'({osp.getsize(path)} bytes; {exc}); copy or download it again'
        ) from exc

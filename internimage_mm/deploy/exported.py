"""Exported models in place of the model of a config, for its data pipeline and metrics."""

from __future__ import annotations

import functools
import importlib
import os.path as osp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .predictor import RUNTIMES, Predictor, load

ROOMS = {'mmdet': 'det', 'mmpretrain': 'cls', 'mmseg': 'seg'}
"""The file of this package for each library."""
_FAMILIES = {'mmdet': 'detector', 'mmpretrain': 'classifier', 'mmseg': 'segmentor'}


def _open(file: str) -> Predictor:
    """Once for the checks before a config's model is built, and for that model."""
    return _opened(file, osp.getmtime(file) if osp.isfile(file) else None)


@functools.lru_cache(1)
def _opened(file: str, time: float | None) -> Predictor:
    return load(file)


def is_exported(file: str) -> bool:
    """Whether a file is an exported model, by its name."""
    return Path(file).suffix in RUNTIMES


def use_exported(cfg: Config, file: str) -> None:
    """Put an exported model in place of the model of a config.

    Raises:
        ImportError, RuntimeError, ValueError: As :func:`load`.
        ValueError: It does another task than the config.
    """
    scope = cfg.default_scope
    family = _open(file).family
    if family != _FAMILIES[scope]:
        raise ValueError(f'{file} is a {family}, the config is for a {_FAMILIES[scope]}')
    importlib.import_module(f'{__package__}.{ROOMS[scope]}')  # registers
    model: dict[str, Any] = dict(
        type=f'Exported{family.capitalize()}', file=file, data_preprocessor=preprocessor_of(cfg)
    )
    if scope == 'mmseg':
        head = cfg.model.decode_head
        model.update(test_cfg=cfg.model.test_cfg, align_corners=head.align_corners)
    cfg.model = model


def preprocessor_of(cfg: Config) -> dict:
    """The settings of a config's data preprocessor."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor  # mmpretrain's place


class ExportedModel(BaseModel):
    """Calls an exported model in ``predict``, image by image.

    Args:
        file: The exported model.
        data_preprocessor: Of the config.
    """

    def __init__(self, file: str, data_preprocessor: dict) -> None:
        BaseModel.__init__(self, data_preprocessor)
        self.predictor = _open(file)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'predict') -> Any:
        if mode != 'predict':
            raise RuntimeError(f'an exported model can only predict, got mode {mode!r}')
        return self.predict(inputs, data_samples)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Call the exported model with a batch on any device; the results are on the CPU.

        Raises:
            UserError: The size of the images does not fit.
        """
        metadata, image = self.predictor.metadata, inputs['image'].cpu()
        if shape := metadata['shape']:
            missing = [max(n - m, 0) for n, m in zip(shape, image.shape[2:], strict=True)]
            image = F.pad(image, (0, missing[1], 0, missing[0]))
        if metadata['preprocess']:  # it normalizes itself; what is padding is known only now
            mean, std = (torch.tensor(metadata[key]).view(-1, 1, 1) for key in ('mean', 'std'))
            image = image * std + mean
            image = image.flip(1) if metadata['rgb'] else image
        arrays = {name: x.cpu().numpy() for name, x in {**inputs, 'image': image}.items()}
        try:
            results = [
                self.predictor.run(**{name: array[i : i + 1] for name, array in arrays.items()})
                for i in range(len(image))
            ]
        except ValueError as error:
            raise UserError(str(error)) from error
        return {
            name: torch.from_numpy(np.concatenate([result[name] for result in results]))
            for name in results[0]
        }

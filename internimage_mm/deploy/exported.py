"""Exported models in place of the model of a config, for its data pipeline and metrics."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from .predictor import RUNTIMES, load

ROOMS = {'mmdet': 'det', 'mmpretrain': 'cls', 'mmseg': 'seg'}
"""The file of this package for each library."""
_FAMILIES = {'mmdet': 'detector', 'mmpretrain': 'classifier', 'mmseg': 'segmentor'}
# A mistake is found before a config's model is built, and the file is opened once.
_open = functools.lru_cache(1)(load)


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
        data_preprocessor: Of the config. What the exported model does itself is left out.
    """

    def __init__(self, file: str, data_preprocessor: dict) -> None:
        predictor = _open(file)
        if predictor.metadata['preprocess']:
            changes = {'mean': None, 'std': None, 'bgr_to_rgb': False, 'to_rgb': False}
            data_preprocessor = {
                key: changes.get(key, value) for key, value in data_preprocessor.items()
            }
        BaseModel.__init__(self, data_preprocessor)
        self.predictor = predictor

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'predict') -> Any:
        if mode != 'predict':
            raise RuntimeError(f'an exported model can only predict, got mode {mode!r}')
        return self.predict(inputs, data_samples)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Call the exported model with a batch."""
        if shape := self.predictor.metadata['shape']:
            image = inputs['image']
            missing = [max(n - m, 0) for n, m in zip(shape, image.shape[2:], strict=True)]
            inputs['image'] = F.pad(image, (0, missing[1], 0, missing[0]))
        arrays = {name: x.cpu().numpy() for name, x in inputs.items()}
        results = [
            self.predictor.run(**{name: array[i : i + 1] for name, array in arrays.items()})
            for i in range(len(arrays['image']))
        ]
        return {
            name: torch.from_numpy(np.concatenate([result[name] for result in results]))
            for name in results[0]
        }

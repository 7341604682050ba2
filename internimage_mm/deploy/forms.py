"""What the exportable forms of all models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

SMALLEST = 64
"""Least height and width of the images of a model of any size."""


class Form(nn.Module):
    """A model from image to results in tensor operations that can be exported.

    The first argument of ``forward`` is ``image`` (N, 3, H, W), float32. A form shares the layers
    of the model that it is made of, and may replace some by exportable ones: that model computes
    the same afterwards, but cannot be trained.

    Args:
        model: The model, in evaluation mode.
        preprocess: None if ``image`` is normalised already. Else the model's ``data_preprocessor``
            settings, and ``image`` is BGR in 0..255, as OpenCV reads it.
    """

    family: str
    """``'classifier'``, ``'segmentor'`` or ``'detector'``."""
    inputs: tuple[str, ...] = ('image',)
    outputs: tuple[str, ...]
    divisor = 32
    """Height and width of the images are multiples of it."""
    any_batch = True
    """Whether N may be anything. Otherwise it is 1."""
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocess: dict | None) -> None:
        super().__init__()
        self.model: Any = replace_pools(model)
        self.preprocess = preprocess
        if preprocess is not None:
            for name in ('mean', 'std'):
                value = torch.tensor(normalization(preprocess)[name])
                self.register_buffer(name, value.view(-1, 1, 1))

    def normalize(self, image: Tensor) -> Tensor:
        """Images as the model takes them."""
        if self.preprocess is None:
            return image
        if normalization(self.preprocess)['rgb']:
            image = image.flip(1)
        return (image - self.mean) / self.std

    def examples(self, height: int, width: int, dynamic: bool) -> tuple[dict, dict | None]:
        """Arguments to trace with and, if sizes are dynamic, which of their sizes are."""
        batch = 2 if dynamic and self.any_batch else 1
        arguments = {'image': torch.zeros(batch, 3, height, width)}
        if not dynamic:
            return arguments, None
        sizes: dict[int, Any] = {
            axis: self.divisor * Dim(name, min=SMALLEST // self.divisor)
            for axis, name in ((2, 'rows'), (3, 'columns'))
        }
        if self.any_batch:
            sizes[0] = Dim('batch')
        return arguments, {'image': sizes}


def normalization(preprocess: dict) -> dict[str, Any]:
    """Of ``data_preprocessor`` settings ``mean``, ``std``, and ``rgb``, whether images are RGB."""
    return {
        'rgb': bool(preprocess.get('bgr_to_rgb') or preprocess.get('to_rgb')),
        'mean': preprocess.get('mean') or [0.0] * 3,
        'std': preprocess.get('std') or [1.0] * 3,
    }


class MatrixPool(nn.Module):
    """Adaptive average pooling for maps of any size, as two matrix products.

    ``nn.AdaptiveAvgPool2d`` exports for fixed sizes only. Cell ``i`` of ``n`` is the mean from
    ``floor(i * size / n)`` to ``ceil((i + 1) * size / n)``, as there.
    """

    def __init__(self, output_size: int | Sequence[int]) -> None:
        super().__init__()
        both = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
        self.output_size = both

    def forward(self, x: Tensor) -> Tensor:
        if self.output_size == (1, 1):
            return x.mean((2, 3), keepdim=True)
        rows, columns = (
            self._means(x, size, cells)
            for size, cells in zip(x.shape[-2:], self.output_size, strict=True)
        )
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def _means(x: Tensor, size: int, cells: int) -> Tensor:
        cell = torch.arange(cells, device=x.device)[:, None]
        position = torch.arange(size, device=x.device)
        inside = (position >= cell * size // cells) & (position < -((cell + 1) * -size // cells))
        weights = inside.to(x.dtype)
        return weights / weights.sum(1, keepdim=True)


def replace_pools(model: nn.Module) -> nn.Module:
    """Replace the pools of a model by exportable ones, in place."""
    return replace(model, nn.AdaptiveAvgPool2d, lambda pool: MatrixPool(pool.output_size))


def replace(model: nn.Module, kind: type, make: Any) -> nn.Module:
    """Replace the submodules of a kind by what ``make`` makes of them, in place."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return model

"""One picture of what a feature pixel samples and depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .receptive_field import areas
from .sampling import STEM_STRIDE, Recording

WIDTH = 4.2  # of one panel, in inches


def draw(
    path: str | Path,
    image: np.ndarray,
    recording: Recording,
    contribution: Tensor,
    stage: int,
    block: int,
    x: float,
    y: float,
) -> None:
    """Draw the points of a block, its trace to the image, and its effective receptive field.

    Args:
        path: The file to write, and the folders that it is in; matplotlib writes the format that
            its suffix names.
        image: (H, W, 3), RGB, as large as the recorded one.
        recording: Where the backbone samples that image.
        contribution: What :func:`receptive_field` returns for the block and the pixel.
        stage: Stage of the block, from 0.
        block: Block within the stage, from 0.
        x: Column of the explained point in the image; its nearest output pixel is drawn.
        y: Its row.
    """
    from matplotlib.figure import Figure

    column, row = recording.pixel(stage, x, y)
    stride = STEM_STRIDE * 2**stage
    height, width = image.shape[:2]
    figure = Figure((3 * WIDTH, WIDTH * height / width + 0.6), layout='constrained')
    points_axes, trace_axes, field_axes = figure.subplots(1, 3)
    grey = image.mean(-1) / 2  # dark, for the heat maps to stand out
    for axes, shown in ((points_axes, image), (trace_axes, grey), (field_axes, grey)):
        axes.imshow(shown, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_axis_off()

    sampling = recording.stages[stage][block]
    groups, count = sampling.weights.shape[2:]
    points = (sampling.points[row, column] * stride).flatten(0, 1)
    points_axes.scatter(
        *points.T.numpy(),
        s=400 * sampling.weights[row, column].flatten().numpy(),
        c=torch.arange(groups).repeat_interleave(count).numpy(),
        cmap='hsv',
        vmax=groups,
        alpha=0.7,
        edgecolors='black',
        linewidths=0.4,
    )
    title = f'stage {stage}, block {block}:\n{groups} groups of {count} points'
    points_axes.set_title(title, fontsize='medium')

    layers = sum(map(len, recording.stages[:stage])) + block + 1
    _heat(trace_axes, recording.trace(stage, block, column, row))
    title = f'traced to the image\nthrough {layers} layers'
    trace_axes.set_title(title, fontsize='medium')

    _heat(field_axes, contribution)
    center = column * stride, row * stride
    figures = areas(contribution, *center)
    parts = ', '.join(f'{share:.0%} in {area:.1%}' for share, area in figures.items())
    field_axes.set_title('effective receptive field:\n' + parts, fontsize='medium')
    for axes in (points_axes, trace_axes, field_axes):
        axes.plot(*center, '+', color='white', markersize=14, markeredgewidth=3)
        axes.plot(*center, '+', color='black', markersize=12, markeredgewidth=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _heat(axes: Any, values: Tensor) -> None:
    """Draw values that span decades, transparent where there is next to nothing."""
    strength = (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)) ** 0.25
    axes.imshow(strength.numpy(), cmap='inferno', vmin=0, vmax=1, alpha=strength.numpy())

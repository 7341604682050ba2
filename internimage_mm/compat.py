"""Lets ``import torchvision`` succeed with a PyTorch that its operators do not fit."""

import contextlib
import importlib.util
import sys
from importlib.machinery import PathFinder

import torch


def define_torchvision_schemas() -> None:
    """Let ``import torchvision`` succeed where its compiled operators cannot load.

    Done when ``internimage_mm`` is imported, because torchvision may be imported at any time after.
    Does nothing where torchvision is missing or imported already.

    The package index holds only CUDA builds of torchvision for Linux. With a CPU build of PyTorch
    its library does not load, which torchvision tolerates, except that it registers fake kernels
    for ``nms`` whose schema the library should have brought. mmpretrain imports torchvision, so
    without the two schemas classification does not start. The operators themselves stay
    unavailable.
    """
    package = importlib.util.find_spec('torchvision')
    if package is None or 'torchvision' in sys.modules:
        return
    library = PathFinder.find_spec('_C', package.submodule_search_locations)
    if library is not None:
        with contextlib.suppress(OSError):
            torch.ops.load_library(library.origin)
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f'torchvision::{name}',
                '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
            )

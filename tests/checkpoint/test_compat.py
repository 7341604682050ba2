"""``import torchvision`` with any build of it."""

import sys

import torch

from internimage_mm import compat


def test_torchvision_and_mmpretrain_import():
    import mmpretrain  # imports torchvision
    import torchvision

    assert mmpretrain.__version__ and torchvision.__version__
    assert hasattr(torch.ops.torchvision, 'nms')


def test_harmless_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    compat.define_torchvision_schemas()

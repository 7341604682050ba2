"""Compatibility with the stack beyond checkpoints, which test_reader.py covers."""

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


def test_onedl_loader_leaves_our_types_allowed():
    # onedl-mmengine allows plain types for the time of its loading and then removes those from the
    # same global list.
    from mmengine.logging import HistoryBuffer

    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([HistoryBuffer]):
        pass
    assert set(torch.serialization.get_safe_globals()) == before
    assert (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer') in before

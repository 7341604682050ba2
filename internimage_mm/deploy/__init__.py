"""Models in files that other runtimes run: ``load`` here, exporting in :mod:`.export`.

:func:`load` needs NumPy, OpenCV and the runtime, neither PyTorch nor OpenMMLab.
"""

from .predictor import load

__all__ = ['load']

"""Loaded by each Python that pip starts while this folder is in PYTHONPATH.

From Python 3.13 on, locals() does not show what exec() has defined (PEP 667), but the setup.py of
mmcv 2.1.0 reads its version in this way.
"""

import builtins
import runpy
import sys


def locals():
    frame = sys._getframe(1)
    if frame.f_code.co_name == 'get_version' and 'version_file' in frame.f_locals:
        return runpy.run_path(frame.f_locals['version_file'])
    names = frame.f_locals
    return names if isinstance(names, dict) else dict(names)


if sys.version_info >= (3, 13):
    builtins.locals = locals

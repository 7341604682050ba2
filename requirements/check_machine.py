"""Says in one line what `make` lacks on this machine: check_machine.py [STACK]."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig


def lack():
    version = f'{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}'
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        return f'{version}, but 3.10 to 3.14 is needed: make PYTHON=python3.11, for example'
    if sys.version_info >= (3, 14) and 'classic' in sys.argv[1:]:
        return f'{version}, on which mmengine 0.10.7 does not run: make STACK=onedl'
    if not all(map(importlib.util.find_spec, ('venv', 'ensurepip'))):
        return f'{version} without venv: apt install python3-venv'
    header = os.path.join(sysconfig.get_path('include'), 'Python.h')
    if not os.path.exists(header):
        return f'{version} without {header}: apt install python3-dev'
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler.split()[0]):
        return f'There is no C++ compiler ({compiler}): apt install g++'
    command = [*compiler.split(), '-std=c++20', '-fsyntax-only', '-x', 'c++', '-']
    if subprocess.run(command, input=b'#include <span>', capture_output=True).returncode:
        return f'{compiler} knows no C++20: make CXX=g++-12, for example'
    return None


sys.exit(lack())

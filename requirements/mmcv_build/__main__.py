"""Compile and install mmcv or onedl-mmcv: python requirements/mmcv_build mmcv==2.1.0 [OPTION ...]

The options are those of "pip install". pip runs mmcv's own setup.py, but the sources are joined
into a few files (mmcv_build.py), without debug information, and a line says how far it is.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

LOG = Path(sys.prefix, 'mmcv_build.log')


def jobs():
    """Compilers at once: one per core, but each takes up to 3 GB."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(os.cpu_count(), memory // 3_000_000_000))


def install(arguments, **environment):
    """Run pip; the errors that it printed, or None. All that it printed is in LOG."""
    environment = {
        'CFLAGS': '-O2 -fwrapv -DNDEBUG',
        'MAX_JOBS': str(jobs()),
        **os.environ,
        **environment,
        'MMCV_WITH_OPS': '1',
        'PYTHONPATH': str(Path(__file__).resolve().parent),
    }
    command = [sys.executable, '-m', 'pip', 'install', '-v', '--no-build-isolation', *arguments]
    pip = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with open(LOG, 'w') as log:
        for line in pip.stdout:
            log.write(line)
            if step := re.match(r' *\[(\d+)/(\d+)\] ', line):
                print(f'{arguments[0]}: compiled {step[1]} of {step[2]} parts', flush=True)
    return find_errors(LOG.read_text()) if pip.wait() else None


def find_errors(text):
    """Of compilers, Python and pip: "x.cpp:1:2: error: ...", "nvcc fatal : ...", "OSError: ...".

    The text of some begins on the next line, and has two.
    """
    errors = re.findall(r'.*(?:(?i:error): |nvcc fatal)(?:\n.*\n)?.*', text)
    return [' '.join(error.split()) for error in errors]


def main(arguments):
    print(f'{arguments[0]}: compiling its operators, unless pip has them in its cache', flush=True)
    errors = install(arguments)
    # A build that failed: a download that was cut short says nothing about CUDA.
    failed = any('subprocess-exited-with-error' in error for error in errors or ())
    if failed and torch.cuda.is_available():
        print(
            f'{arguments[0]}: no CUDA operators ({errors[0]}). Compiling those for the CPU: '
            'detectors will not run on the GPU. To get both, install the CUDA toolkit '
            f'{torch.version.cuda} and remove this environment.',
            flush=True,
        )
        errors = install(arguments, CUDA_VISIBLE_DEVICES='')
    if errors is not None:
        sys.exit('\n'.join([*errors[:10], f'{arguments[0]} is not installed; see {LOG}']))


if __name__ == '__main__':
    main(sys.argv[1:])

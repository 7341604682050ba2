"""Build the compiled DCNv3 kernels and ship configs and tools inside the package.

Metadata is in pyproject.toml. Without a C++ compiler the package is installed as pure Python, with
one warning; the op then runs on its PyTorch backend.

The environment variable OPS_DCNV3_CUDA says whether the extension gets CUDA kernels: ``auto`` (the
default) if torch has CUDA, and without them, with a warning, where they cannot be compiled; ``1``:
compile them or fail; ``0``: do not. TORCH_CUDA_ARCH_LIST is respected; the default is the GPUs of
this machine, or all usual ones where it has none.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')
WANTED = os.environ.get('OPS_DCNV3_CUDA', 'auto')
USUAL_GPUS = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))


def has_compiler():
    """Whether a C++ compiler is there; if it is not Python's own, setuptools is told which."""
    usual = (os.environ.get('CXX') or sysconfig.get_config_var('CXX') or 'c++').split()[0]
    for name in (usual, 'c++', 'g++', 'clang++'):
        if shutil.which(name):
            if name != usual:
                os.environ['CC'] = os.environ['CXX'] = name
            return True
    return sys.platform == 'win32'  # setuptools finds MSVC outside PATH


class BuildPy(build_py):
    """Adds ``internimage_mm/.mim``, where openmim looks for configs, tools and the model index."""

    def run(self):
        super().run()
        if not self.distribution.ext_modules:
            warnings.warn(
                'No C++ compiler found: ops_dcnv3 is installed without its compiled kernels and '
                'runs on its slow PyTorch backend. Install a C++20 compiler (g++ or clang++) and '
                'install internimage-mm again to get them.',
                stacklevel=1,
            )
        link = getattr(self, 'editable_mode', False) and sys.platform != 'win32'
        folder = (ROOT if link else Path(self.build_lib)) / 'internimage_mm' / '.mim'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_FILES:
            if link:
                (folder / name).symlink_to(os.path.relpath(ROOT / name, folder))
            elif (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, folder / name, ignore=ignore)
            else:
                shutil.copy2(ROOT / name, folder / name)


def known_gpus(cuda_home):
    """TORCH_CUDA_ARCH_LIST: the GPUs of this machine, or else the usual ones, as far as nvcc knows
    them, and PTX of the last, which newer GPUs compile themselves.
    """
    if cuda_home is None:
        raise OSError('no CUDA toolkit is found; install one, or set CUDA_HOME')
    nvcc = str(Path(cuda_home, 'bin', 'nvcc'))
    version = subprocess.check_output([nvcc, '--version'], text=True)
    release = re.search(r'release (\d+)', version)[1]
    if release != str(torch.version.cuda).split('.')[0]:
        raise OSError(f'{nvcc} is of CUDA {release}, but torch of CUDA {torch.version.cuda}')
    known = subprocess.check_output([nvcc, '--list-gpu-arch'], text=True)
    known = sorted((int(number) // 10, int(number) % 10) for number in re.findall(r'\d+', known))
    here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    found = sorted(set(known).intersection(here or USUAL_GPUS)) or known[-1:]
    return ';'.join(f'{major}.{minor}' for major, minor in found) + '+PTX'


def extension(cuda):
    csrc = Path('ops_dcnv3', 'csrc')
    sources = [p for p in csrc.rglob('*') if p.suffix in ('.cpp', '.cu')]
    if not cuda:
        sources = [p for p in sources if 'cuda' not in str(p)]
    elif not os.environ.get('TORCH_CUDA_ARCH_LIST'):
        os.environ['TORCH_CUDA_ARCH_LIST'] = known_gpus(cpp_extension.CUDA_HOME)
    if sys.platform == 'win32':
        cxx = ['/O2', '/fp:precise']
    else:
        # Floating-point traps and errno are not used; without them selects vectorise.
        cxx = ['-O3', '-fno-math-errno', '-fno-trapping-math', '-g0']
    # at::parallel_for is a header; without the flag it runs on one thread, silently. Not for the
    # linker: the OpenMP library is torch's own, under whatever name, as is its pool of threads.
    openmp = ['-fopenmp'] if sys.platform == 'linux' else []
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return kind(
        'ops_dcnv3._C',
        sorted(map(str, sources)),
        depends=['setup.py', *sorted(str(path) for path in csrc.rglob('*.*h'))],
        extra_compile_args={'cxx': cxx + openmp, 'nvcc': ['-O3']},
        py_limited_api=True,
    )


if WANTED not in ('0', '1', 'auto'):
    raise SystemExit(f'OPS_DCNV3_CUDA must be 0, 1 or auto, got {WANTED!r}')
EXTENSIONS, COMMANDS = [], {'build_py': BuildPy}
if has_compiler():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            'internimage-mm needs torch at build time, and pip hides it from isolated builds. '
            'Install torch first, then run: pip install --no-build-isolation .\n'
            f'(importing torch failed: {error})'
        ) from error

    class BuildExt(cpp_extension.BuildExtension):
        def __init__(self, *args, **kwargs):
            # ninja rebuilds by time stamps, which a fresh copy of the sources gets wrong.
            super().__init__(*args, use_ninja=False, **kwargs)

        def finalize_options(self):
            super().finalize_options()
            self.force = True  # a new torch, or CUDA asked for, shows in no time stamp

        def build_extensions(self):
            if WANTED == '1' or (WANTED == 'auto' and torch.version.cuda):
                try:
                    return self._build(cuda=True)
                except Exception as error:
                    if WANTED == '1':
                        raise
                    warnings.warn(
                        f'ops_dcnv3 is built without its CUDA kernels ({error}). On a GPU the op '
                        'runs on its Triton or PyTorch backend.',
                        stacklevel=1,
                    )
            self._build(cuda=False)

        def _build(self, cuda):
            vars(self.extensions[0]).update(vars(extension(cuda)))
            super().build_extensions()

    EXTENSIONS, COMMANDS['build_ext'] = [extension(cuda=False)], BuildExt
elif WANTED == '1':
    raise SystemExit('OPS_DCNV3_CUDA is 1, but no C++ compiler is found')
setup(
    ext_modules=EXTENSIONS,
    cmdclass=COMMANDS,
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
)

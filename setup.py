"""Build the compiled DCNv3 kernels and ship configs and tools inside the package.

Metadata is in pyproject.toml. Without a C++ compiler the package is installed as pure Python, with
one warning; the op then runs on its PyTorch backend.
"""

import os
import platform
import shutil
import sys
import sysconfig
import warnings
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / 'ops_dcnv3' / 'csrc'
MIM_FILES = ('configs', 'tools', 'model-index.yml')
EXTENSION = Extension(
    'ops_dcnv3._C',
    sources=[str(p.relative_to(ROOT)) for p in sorted(KERNELS.rglob('*.cpp'))],
    depends=['setup.py', *(str(p.relative_to(ROOT)) for p in sorted(KERNELS.rglob('*.h')))],
    language='c++',
    py_limited_api=True,
)


def has_compiler() -> bool:
    """Whether a C++ compiler is there; if it is not Python's own, setuptools is told which."""
    if sys.platform == 'win32':
        return True  # setuptools finds MSVC outside PATH and says itself when it does not

    def found(command):
        return bool(command) and shutil.which(command.split()[0]) is not None

    if found(os.environ.get('CXX') or sysconfig.get_config_var('CXX')):
        return True
    for name in ('c++', 'g++', 'clang++'):
        if found(name):
            os.environ['CC'] = os.environ['CXX'] = name
            return True
    return False


def torch_build_ext():
    """Return torch's build_ext, prepared for our extension."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise SystemExit(
            'internimage-mm needs torch at build time, and pip hides it from isolated builds. '
            'Install torch first, then run: pip install --no-build-isolation .\n'
            f'(importing torch failed: {error})'
        ) from error

    class TorchBuildExt(BuildExtension):
        def __init__(self, *args, **kwargs):
            # ninja rebuilds by time stamps, which a fresh copy of the sources gets wrong.
            super().__init__(*args, use_ninja=False, **kwargs)

        def finalize_options(self):
            super().finalize_options()
            self.parallel = self.parallel or min(os.cpu_count() or 1, 8)

    settings = CppExtension('unused', sources=[], py_limited_api=True)
    macros = [('Py_LIMITED_API', '0x030A0000')]
    if sys.platform == 'win32':
        flags = ['/O2', '/std:c++17', '/fp:precise']
    else:
        # Floating-point traps and errno are not used; without them selects vectorise.
        flags = ['-O3', '-std=c++17', '-fno-math-errno', '-fno-trapping-math', '-g0']
        flags += ['-Wall', '-Wextra']
        flags += os.environ.get('OPS_DCNV3_CXXFLAGS', '').split()
        if sys.platform == 'linux':
            # at::parallel_for is a header; without the flag it runs on one thread, silently.
            flags.append('-fopenmp')
            EXTENSION.extra_link_args = ['-fopenmp']
        if platform.machine().lower() in ('x86_64', 'amd64'):
            macros.append(('DCNV3_X86_DISPATCH', '1'))
    # torch's headers are not ours to warn about
    include = list(settings.include_dirs)
    if sys.platform != 'win32':
        flags += [f'-isystem{path}' for path in include]
        include = []
    EXTENSION.include_dirs = [str(KERNELS / 'cpu'), *include]
    EXTENSION.library_dirs = settings.library_dirs
    EXTENSION.libraries = settings.libraries
    EXTENSION.define_macros = macros
    EXTENSION.extra_compile_args = flags
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6):
        raise SystemExit(f'internimage-mm needs torch 2.6 or newer, found {torch.__version__}')
    return TorchBuildExt


class BuildExt(build_ext):
    """Hands over to torch's build_ext, only once something is really to be built."""

    def run(self):
        if not has_compiler():
            warnings.warn(
                'No C++ compiler found: ops_dcnv3 is installed without its compiled kernels and '
                'runs on its slow PyTorch backend. Install a C++17 compiler (g++ or clang++) and '
                'install internimage-mm again to get them.',
                stacklevel=1,
            )
            self.extensions = []
            return
        command = torch_build_ext()(self.distribution)
        command.ensure_finalized()
        for name in ('build_lib', 'build_temp', 'inplace', 'force', 'debug', 'editable_mode'):
            if hasattr(self, name):
                setattr(command, name, getattr(self, name))
        command.run()


class BuildPy(build_py):
    """Adds ``internimage_mm/.mim``, where openmim looks for configs, tools and the model index."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            self._place(ROOT / 'internimage_mm' / '.mim', link=True)
        else:
            self._place(Path(self.build_lib) / 'internimage_mm' / '.mim', link=False)

    def _place(self, folder, link):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_FILES:
            source, target = ROOT / name, folder / name
            if link:
                try:
                    target.symlink_to(os.path.relpath(source, folder))
                    continue
                except OSError:  # Windows without the right to make links
                    pass
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


setup(ext_modules=[EXTENSION], cmdclass={'build_ext': BuildExt, 'build_py': BuildPy})

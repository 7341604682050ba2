"""Build the compiled DCNv3 kernels and ship configs and tools inside the package.

Metadata is in pyproject.toml. Without a C++ compiler the package is installed as pure Python, with
one warning; the op then runs on its PyTorch backend.

The CUDA kernels are an extension of their own. The environment variable OPS_DCNV3_CUDA says whether
to build it: ``auto`` (the default) if torch has CUDA and nvcc is found, and an install without it,
with a warning, if that fails; ``1``: build it or fail; ``0``: do not. TORCH_CUDA_ARCH_LIST is
respected; the default is the GPUs of this machine, or all usual ones where it has none.
"""

import os
import platform
import re
import shutil
import subprocess
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
    sources=[
        str(p.relative_to(ROOT))
        for p in sorted(KERNELS.rglob('*.cpp'))
        if p.parent != KERNELS / 'cuda'
    ],
    depends=['setup.py', *(str(p.relative_to(ROOT)) for p in sorted(KERNELS.rglob('*.h')))],
    language='c++',
    py_limited_api=True,
)
CUDA_EXTENSION = Extension(
    'ops_dcnv3._C_cuda',
    sources=[
        str(p.relative_to(ROOT))
        for pattern in ('*.cpp', '*.cu')
        for p in sorted((KERNELS / 'cuda').glob(pattern))
    ],
    depends=['setup.py', *(str(p.relative_to(ROOT)) for p in sorted(KERNELS.rglob('*.*h')))],
    language='c++',
    py_limited_api=True,
)
# Reasons for no CUDA kernels that need no warning.
QUIET = ('OPS_DCNV3_CUDA is 0', 'torch is built without CUDA')
# Where no GPU is seen; of these what nvcc knows, and PTX of the last for later GPUs.
USUAL_GPUS = (70, 75, 80, 86, 89, 90, 100, 120)


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
    # No -std: our sources are C++17, and torch adds what its headers need, C++20 in newer releases.
    if sys.platform == 'win32':
        flags = ['/O2', '/fp:precise']
    else:
        # Floating-point traps and errno are not used; without them selects vectorise.
        flags = ['-O3', '-fno-math-errno', '-fno-trapping-math', '-g0']
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


def nvcc(*arguments):
    from torch.utils.cpp_extension import CUDA_HOME

    command = [str(Path(CUDA_HOME or '') / 'bin' / 'nvcc'), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cuda_obstacle():
    """Return why the CUDA kernels are not to be built here, or None."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if os.environ.get('OPS_DCNV3_CUDA') == '0':
        return QUIET[0]
    if torch.version.cuda is None:
        return QUIET[1]
    if CUDA_HOME is None:
        return 'no CUDA toolkit is found (install one, or set CUDA_HOME)'
    try:
        version = re.search(r'release (\d+)\.(\d+)', nvcc('--version'))
    except (OSError, subprocess.CalledProcessError) as error:
        return f'nvcc of {CUDA_HOME} does not run: {error}'
    if version is None or version[1] != torch.version.cuda.split('.')[0]:
        found = version[0] if version else 'of unknown release'
        return f'torch is built with CUDA {torch.version.cuda}, but nvcc is {found}'
    return None


def prepare_cuda():
    """Fill in what the CUDA extension needs of torch and of nvcc."""
    import torch
    from torch.utils.cpp_extension import CUDAExtension

    settings = CUDAExtension('unused', sources=[], py_limited_api=True)
    if sys.platform == 'win32':
        flags = ['/O2']
        CUDA_EXTENSION.include_dirs = settings.include_dirs
    else:
        flags = ['-O3', '-g0', '-Wall', '-Wextra']
        flags += [f'-isystem{path}' for path in settings.include_dirs]
    nvcc_flags = ['-O3', '-std=c++17']  # the kernels include headers of CUDA only
    if not os.environ.get('TORCH_CUDA_ARCH_LIST') and torch.cuda.device_count() == 0:
        known = {int(number) for number in re.findall(r'compute_(\d+)', nvcc('--list-gpu-arch'))}
        targets = [number for number in USUAL_GPUS if number in known]
        nvcc_flags += [f'-gencode=arch=compute_{n},code=sm_{n}' for n in targets]
        nvcc_flags.append(f'-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}')
    CUDA_EXTENSION.library_dirs = settings.library_dirs
    CUDA_EXTENSION.libraries = settings.libraries
    CUDA_EXTENSION.define_macros = [('Py_LIMITED_API', '0x030A0000')]
    CUDA_EXTENSION.extra_compile_args = {'cxx': flags, 'nvcc': nvcc_flags}


class BuildExt(build_ext):
    """Hands over to torch's build_ext, only once something is really to be built."""

    def run(self):
        wanted = os.environ.get('OPS_DCNV3_CUDA', 'auto')
        if wanted not in ('0', '1', 'auto'):
            raise SystemExit(f'OPS_DCNV3_CUDA must be 0, 1 or auto, got {wanted!r}')
        if not has_compiler():
            if wanted == '1':
                raise SystemExit('OPS_DCNV3_CUDA is 1, but no C++ compiler is found')
            warnings.warn(
                'No C++ compiler found: ops_dcnv3 is installed without its compiled kernels and '
                'runs on its slow PyTorch backend. Install a C++20 compiler (g++ or clang++) and '
                'install internimage-mm again to get them.',
                stacklevel=1,
            )
            self.extensions = []
            return
        build = torch_build_ext()
        self._build(build, EXTENSION)
        obstacle = cuda_obstacle()
        if obstacle is None:
            try:
                prepare_cuda()
                self._build(build, CUDA_EXTENSION)
            except Exception as error:
                if wanted == '1':
                    raise
                obstacle = f'compiling them failed: {error}'
        if obstacle is not None:
            if wanted == '1':
                raise SystemExit(f'OPS_DCNV3_CUDA is 1, but {obstacle}')
            if obstacle not in QUIET:
                warnings.warn(
                    f'ops_dcnv3 is installed without its CUDA kernels: {obstacle}. On a GPU the '
                    'op runs on its Triton or PyTorch backend.',
                    stacklevel=1,
                )
        self.extensions = [EXTENSION] if obstacle else [EXTENSION, CUDA_EXTENSION]
        self.distribution.ext_modules = self.extensions

    def _build(self, build, extension):
        self.distribution.ext_modules = [extension]
        command = build(self.distribution)
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


setup(
    ext_modules=[EXTENSION, CUDA_EXTENSION],
    cmdclass={'build_ext': BuildExt, 'build_py': BuildPy},
)

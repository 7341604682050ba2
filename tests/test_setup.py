"""Where the CUDA kernels cannot be built, an install goes on without them and says why."""

import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from setuptools import Distribution
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parents[1]
CPU, CUDA = 'ops_dcnv3._C', 'ops_dcnv3._C_cuda'
# What nvcc lists, in its order.
CUDA_12_4 = '50 52 53 60 61 62 70 72 75 80 86 87 89 90'
CUDA_13_0 = '75 80 86 87 88 89 90 100 110 103 120 121'
NVCC = """#!/bin/sh
case $1 in
--version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;
--list-gpu-arch) printf 'compute_%s\\n' {architectures} ;;
*) exit 2 ;;
esac
"""


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module, and what it hands to setuptools."""
    keywords = {}
    monkeypatch.setattr('setuptools.setup', keywords.update)
    spec = importlib.util.spec_from_file_location('setup_under_test', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.keywords = keywords
    # It may set CC and CXX, for good.
    monkeypatch.setattr(module, 'has_compiler', lambda: True)
    for name in ('OPS_DCNV3_CUDA', 'TORCH_CUDA_ARCH_LIST'):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """A machine without GPU where CUDA kernels can be built; returns where its nvcc is."""
    nvcc = tmp_path / 'bin' / 'nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text(NVCC.format(release='13.0', architectures=CUDA_13_0))
    nvcc.chmod(0o755)
    monkeypatch.setattr('torch.version.cuda', '13.2')
    monkeypatch.setattr('torch.utils.cpp_extension.CUDA_HOME', str(tmp_path))
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    return nvcc


def no_toolkit(monkeypatch):
    monkeypatch.setattr('torch.utils.cpp_extension.CUDA_HOME', None)


def test_no_obstacle(setup, toolkit):
    """Another minor release of the same CUDA is none."""
    assert setup.cuda_obstacle() is None


def test_cuda_is_not_wanted(setup, toolkit, monkeypatch):
    monkeypatch.setenv('OPS_DCNV3_CUDA', '0')
    assert setup.cuda_obstacle() == 'OPS_DCNV3_CUDA is 0'


def test_torch_without_cuda(setup, toolkit, monkeypatch):
    monkeypatch.setattr('torch.version.cuda', None)
    assert setup.cuda_obstacle() == 'torch is built without CUDA'


def test_no_toolkit(setup, toolkit, monkeypatch):
    no_toolkit(monkeypatch)
    assert 'no CUDA toolkit is found' in setup.cuda_obstacle()


@pytest.mark.parametrize(
    ('script', 'reason'), [(None, 'No such file'), ('#!/bin/sh\nexit 3\n', 'exit status 3')]
)
def test_nvcc_does_not_run(setup, toolkit, script, reason):
    if script is None:
        toolkit.unlink()
    else:
        toolkit.write_text(script)
    obstacle = setup.cuda_obstacle()
    assert obstacle.startswith(f'nvcc of {toolkit.parents[1]} does not run: ')
    assert reason in obstacle


@pytest.mark.parametrize(
    ('cuda', 'release', 'found'),
    [
        ('12.8', '13.0', 'release 13.0'),
        ('13.0', '12.8', 'release 12.8'),
        ('13.0', 'unreleased', 'of unknown release'),
    ],
)
def test_nvcc_of_another_cuda(setup, toolkit, monkeypatch, cuda, release, found):
    monkeypatch.setattr('torch.version.cuda', cuda)
    toolkit.write_text(NVCC.format(release=release, architectures=''))
    assert setup.cuda_obstacle() == f'torch is built with CUDA {cuda}, but nvcc is {found}'


@pytest.mark.parametrize(
    ('architectures', 'targets'),
    [(CUDA_12_4, (70, 75, 80, 86, 89, 90)), (CUDA_13_0, (75, 80, 86, 89, 90, 100, 120))],
)
def test_targets_are_what_nvcc_knows(setup, toolkit, architectures, targets):
    """And PTX, which later GPUs need, of the last."""
    toolkit.write_text(NVCC.format(release='13.0', architectures=architectures))
    setup.prepare_cuda()
    flags = setup.CUDA_EXTENSION.extra_compile_args['nvcc']
    assert [flag for flag in flags if 'arch' in flag] == [
        *(f'-gencode=arch=compute_{n},code=sm_{n}' for n in targets),
        f'-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}',
    ]


@pytest.mark.parametrize('source', ['TORCH_CUDA_ARCH_LIST', 'GPU'])
def test_targets_are_left_to_torch(setup, toolkit, monkeypatch, source):
    """It chooses only if no flag names one."""
    if source == 'GPU':
        monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    else:
        monkeypatch.setenv(source, '8.6')
    setup.prepare_cuda()
    arguments = setup.CUDA_EXTENSION.extra_compile_args
    assert '-O3' in arguments['nvcc']
    assert not [flag for flag in arguments['nvcc'] if 'arch' in flag]


@pytest.fixture
def build(setup, toolkit, monkeypatch):
    """Runs build_ext with nothing really compiled; the extensions in `failing` fail to."""

    def run(wanted=None, failing=()):
        compiled = []

        class Compile(build_ext):
            def run(self):
                (name,) = (extension.name for extension in self.extensions)
                if name in failing:
                    raise CompileError(f'cannot compile {name}')
                compiled.append((name, self.build_lib))

        monkeypatch.setattr(setup, 'torch_build_ext', lambda: Compile)
        if wanted is not None:
            monkeypatch.setenv('OPS_DCNV3_CUDA', wanted)
        distribution = Distribution(setup.keywords)
        command = distribution.get_command_obj('build_ext')
        command.build_lib = 'elsewhere'
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            distribution.run_command('build_ext')
        assert {folder for _, folder in compiled} <= {'elsewhere'}
        # What is installed; without a C++ compiler nothing is.
        assert command.extensions == (distribution.ext_modules if compiled else [])
        return SimpleNamespace(
            compiled=[name for name, _ in compiled],
            installed=[extension.name for extension in command.extensions],
            warned=[str(w.message) for w in caught if 'ops_dcnv3' in str(w.message)],
        )

    return run


@pytest.mark.parametrize('wanted', [None, 'auto', '1'])
def test_both_are_built(build, wanted):
    result = build(wanted)
    assert result.compiled == result.installed == [CPU, CUDA]
    assert not result.warned


def test_auto_warns_of_an_obstacle(build, monkeypatch):
    no_toolkit(monkeypatch)
    result = build()
    assert result.compiled == result.installed == [CPU]
    (warning,) = result.warned
    assert 'without its CUDA kernels: no CUDA toolkit is found' in warning


def test_auto_warns_of_a_failure(build):
    result = build(failing=[CUDA])
    assert result.compiled == result.installed == [CPU]
    (warning,) = result.warned
    assert f'compiling them failed: cannot compile {CUDA}' in warning


def test_auto_warns_of_a_failing_preparation(build, toolkit):
    """An nvcc too old to list what it knows."""
    toolkit.write_text(toolkit.read_text().replace('--list-gpu-arch', '--none'))
    result = build()
    assert result.compiled == result.installed == [CPU]
    (warning,) = result.warned
    assert 'compiling them failed' in warning and '--list-gpu-arch' in warning


@pytest.mark.parametrize('wanted', [None, '0'])
def test_quiet_where_no_cuda_is_expected(build, monkeypatch, wanted):
    if wanted is None:
        monkeypatch.setattr('torch.version.cuda', None)
    result = build(wanted)
    assert result.compiled == result.installed == [CPU]
    assert not result.warned


def test_forced_names_the_obstacle(build, monkeypatch):
    """Also one that is quiet otherwise."""
    no_toolkit(monkeypatch)
    with pytest.raises(SystemExit, match='OPS_DCNV3_CUDA is 1, but no CUDA toolkit is found'):
        build('1')
    monkeypatch.setattr('torch.version.cuda', None)
    with pytest.raises(SystemExit, match='OPS_DCNV3_CUDA is 1, but torch is built without CUDA'):
        build('1')


def test_forced_fails_as_the_compiler_does(build):
    with pytest.raises(CompileError, match=f'cannot compile {CUDA}'):
        build('1', failing=[CUDA])


@pytest.mark.parametrize('wanted', ['0', 'auto', '1'])
def test_the_cpu_kernels_must_compile(build, wanted):
    with pytest.raises(CompileError, match=f'cannot compile {CPU}$'):
        build(wanted, failing=[CPU])


@pytest.mark.parametrize('wanted', ['yes', 'AUTO', ''])
def test_bad_value(build, wanted):
    """Said before minutes of compilation."""
    with pytest.raises(SystemExit, match=f'must be 0, 1 or auto, got {wanted!r}'):
        build(wanted, failing=[CPU])


def test_forced_without_cxx_compiler(setup, build, monkeypatch):
    monkeypatch.setattr(setup, 'has_compiler', lambda: False)
    assert build().compiled == []
    with pytest.raises(SystemExit, match=r'OPS_DCNV3_CUDA is 1, but no C\+\+ compiler is found'):
        build('1')

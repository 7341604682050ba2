"""What a wheel and an sdist hold; neither installing nor running a wheel needs a compiler."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SHIPPED = (
    'configs/coco/mask-rcnn_internimage-t_fpn_1x_coco.py',
    'configs/coco/metafile.yml',
    'tools/train.py',
    'model-index.yml',
)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the tracked folders, as a build leaves files beside its sources."""
    target = tmp_path_factory.mktemp('source')
    ignore = shutil.ignore_patterns('__pycache__', '*.so', '.mim')
    for name in ('configs', 'tools', 'internimage_mm', 'ops_dcnv3'):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
    return target


def run(command, cwd, timeout=300, **environment):
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """A wheel built without a compiler, and what the build printed."""
    folder = tmp_path_factory.mktemp('wheel')
    (folder / 'bin').mkdir()
    command = ['-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps', '.']
    output = run([*command, '--wheel-dir', str(folder)], source, PATH=str(folder / 'bin'), CXX='')
    (path,) = folder.glob('*.whl')
    return path, output


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """The wheel installed into a folder of its own."""
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(folder)
    return str(folder)


def test_wheel_without_compiler(wheel, site, tmp_path):
    """Pure Python, one warning, configs and tools inside, and the op works."""
    path, output = wheel
    assert path.name.endswith('-py3-none-any.whl')
    assert output.count('No C++ compiler found') == 1
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert {f'internimage_mm/.mim/{name}' for name in SHIPPED} <= set(names)
    data = {'internimage_mm/py.typed', 'ops_dcnv3/py.typed', 'internimage_mm/explain/page.html'}
    assert data <= set(names)
    assert not [name for name in names if name.endswith('.so')]
    assert not [name for name in names if name.startswith('tests/')]
    code = (
        # An editable install beside it would find the compiled module in the sources.
        'sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f)]; '
        'import torch, ops_dcnv3; '
        'assert ops_dcnv3.__file__.startswith(sys.argv[1]); '
        'layer = ops_dcnv3.DCNv3(8, group=2, backend="reference"); '
        'layer(torch.zeros(1, 4, 4, 8)); '
        'print(ops_dcnv3.explain_backend())'
    )
    script = f'import sys; sys.path.insert(0, sys.argv[1]); {code}'
    output = run(['-c', script, site], tmp_path)
    assert "runs on backend 'reference'" in output
    assert 'built without a C++ compiler' in output


OWN_CONFIG = """
_base_ = __import__('internimage_mm').config_path(
    'quickstart/upernet_internimage-nano_mini-ade20k.py')
train_cfg = dict(max_iters=1, val_interval=10)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""


def mim(*args, site, cwd):
    """openmim, with the wheel and not the sources in front of it."""
    code = 'import sys; from mim.cli import cli; sys.argv[0] = "mim"; cli()'
    return run(['-W', 'ignore', '-c', code, *map(str, args)], cwd, PYTHONPATH=site)


def test_mim_finds_every_model_in_the_wheel(site, tmp_path):
    import yaml

    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    names = [m['Name'] for f in index for m in yaml.safe_load((ROOT / f).read_text())['Models']]
    output = mim('search', 'internimage_mm', site=site, cwd=tmp_path)
    assert [line[11:] for line in output.splitlines() if line.startswith('config id: ')] == names


def test_mim_downloads(site, tmp_path):
    """The file is there already, as no network is."""
    name = 'mask-rcnn_internimage-t_fpn_1x_coco'
    weights = tmp_path / 'mask_rcnn_internimage_t_fpn_1x_coco.pth'
    weights.touch()
    output = mim(
        'download', 'internimage_mm', '--config', name, '--dest', tmp_path, site=site, cwd=tmp_path
    )
    assert f'{weights.name} exists in {tmp_path}' in output
    assert "type='MaskRCNN'" in (tmp_path / f'{name}.py').read_text()


def test_mim_trains_and_tests_from_the_wheel(site, tmp_path):
    """A config of the wheel by its name, and one elsewhere that inherits it."""
    from internimage_mm.data import make_mini_ade20k

    make_mini_ade20k(tmp_path / 'data' / 'mini_ade20k', num_train=2, num_val=1, seed=0)
    (tmp_path / 'own.py').write_text(OWN_CONFIG)
    output = mim('train', 'internimage_mm', 'own.py', site=site, cwd=tmp_path)
    assert 'Training finished successfully' in output
    assert f'{site}/internimage_mm/.mim/tools/train.py own.py' in output
    checkpoint = 'work_dirs/own/iter_1.pth'
    assert (tmp_path / checkpoint).is_file()
    output = mim(
        'test', 'internimage_mm', 'upernet_internimage-nano_mini-ade20k.py', '--checkpoint',
        checkpoint, site=site, cwd=tmp_path,
    )  # fmt: skip
    assert f'{site}/internimage_mm/.mim/configs/quickstart/upernet' in output
    assert 'mIoU: ' in output
    assert 'Testing finished successfully' in output


@pytest.fixture(scope='module')
def sdist(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sdist')
    run(['setup.py', '-q', 'sdist', '--dist-dir', str(folder)], source)
    (archive,) = folder.glob('*.tar.gz')
    return archive


def test_sdist(source, sdist):
    """Everything that a build needs."""
    with tarfile.open(sdist) as file:
        names = {name.split('/', 1)[1] for name in file.getnames() if '/' in name}
    sources = {str(p.relative_to(source)) for p in (source / 'ops_dcnv3/csrc').rglob('*.[ch]*')}
    assert len(sources) >= 7
    assert sources | set(SHIPPED) | {'setup.py', 'pyproject.toml', 'LICENSE'} <= names


OP_TESTS = """
import shutil, sys
import pytest
import ops_dcnv3

assert ops_dcnv3.__file__.startswith(sys.argv[1]), ops_dcnv3.__file__
compilers = 'c++', 'g++', 'clang++', 'cc', 'gcc', 'clang', 'nvcc'
found = list(filter(None, map(shutil.which, compilers)))
assert not found, found
assert ops_dcnv3.available_backends()['cpu'][0], ops_dcnv3.explain_backend()
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.timeout(1200)
def test_compiled_wheel_runs_without_compiler(sdist, tmp_path):
    """Built from the sdist, installed elsewhere; the tests of the op use it, not the sources."""
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    empty.mkdir()
    pip = ['-m', 'pip', '--disable-pip-version-check']
    run(
        [*pip, 'wheel', '--no-build-isolation', '--no-deps', '-w', str(tmp_path), str(sdist)],
        tmp_path,
        timeout=900,
        OPS_DCNV3_CUDA='0',
    )
    (wheel,) = tmp_path.glob('*.whl')
    assert '-cp310-abi3-' in wheel.name
    run([*pip, 'install', '--no-deps', '--no-index', '--target', str(site), str(wheel)], tmp_path)
    (library,) = (site / 'ops_dcnv3').glob('_C*')
    # registration.py reads it from the file.
    assert (
        f'ops_dcnv3 for torch {Version(torch.__version__).base_version}\0'.encode()
        in library.read_bytes()
    )
    files = [f'test_{name}.py' for name in ('values', 'arguments')]
    # One dtype of the wheel's kernels; the other tests of the op run on the same ones in place.
    output = run(
        ['-c', OP_TESTS, str(site), '-q', '-c', str(ROOT / 'pyproject.toml'),
         '-k', 'arguments or (cpu and float32)',
         *(str(ROOT / 'tests' / 'ops' / name) for name in files)],
        empty, timeout=900, PATH=str(empty), CC='', CXX='', PYTHONPATH=str(site),
    )  # fmt: skip
    assert int(re.search(r'(\d+) passed', output)[1]) > 100, output[-4000:]


def test_editable_install_has_mim_folder():
    import internimage_mm

    mim = Path(internimage_mm.__file__).parent / '.mim'
    assert all((mim / name).is_file() for name in SHIPPED)


def test_build_without_torch_says_what_to_do(source):
    """pip hides torch from isolated builds; the message must not be an ImportError alone."""
    code = (
        'import sys; sys.modules["torch"] = None; sys.argv = ["setup.py", "build_ext"]; '
        'exec(open("setup.py").read())'
    )
    result = subprocess.run(
        [sys.executable, '-c', f'__file__ = "setup.py"; {code}'],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert 'pip install --no-build-isolation' in result.stderr

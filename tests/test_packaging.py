"""What a wheel and an sdist hold, and that installing needs no compiler."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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


def run(command, cwd, **environment):
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


def test_wheel_without_compiler(source, tmp_path):
    """Pure Python, one warning, configs and tools inside, and the op works."""
    (tmp_path / 'bin').mkdir()
    command = ['-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps', '.']
    output = run(
        [*command, '--wheel-dir', str(tmp_path)], source, PATH=str(tmp_path / 'bin'), CXX=''
    )
    assert output.count('No C++ compiler found') == 1
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / 'site')
    assert {f'internimage_mm/.mim/{name}' for name in SHIPPED} <= set(names)
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
    site = str(tmp_path / 'site')
    script = f'import sys; sys.path.insert(0, sys.argv[1]); {code}'
    output = run(['-c', script, site], tmp_path)
    assert "runs on backend 'reference'" in output
    assert 'built without a C++ compiler' in output


def test_sdist(source, tmp_path):
    """Everything that a build needs."""
    run(['setup.py', '-q', 'sdist', '--dist-dir', str(tmp_path)], source)
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as file:
        names = {name.split('/', 1)[1] for name in file.getnames() if '/' in name}
    sources = {str(p.relative_to(source)) for p in (source / 'ops_dcnv3/csrc').rglob('*.[ch]*')}
    assert len(sources) >= 7
    assert sources | set(SHIPPED) | {'setup.py', 'pyproject.toml', 'LICENSE'} <= names


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

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from internimage_mm import env
from ops_dcnv3 import explain_backend


def test_report_has_what_pip_knows_and_the_choice_of_a_backend():
    lines = env.report().splitlines()
    assert lines[2].startswith(f'torch {torch.__version__}, CUDA ')
    pip = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    for module, names in env.STACK.items():
        versions = [f'{name} {pip[name]}' for name in names if name in pip]
        assert f'{module}: {", ".join(versions) or "not installed"}' in lines
    for name in env.OTHERS:
        assert f'{name}: {pip.get(name, "not installed")}' in lines
    assert '\n'.join(lines).count(explain_backend('cpu')) == 1


REPORT = """
import runpy, sys
sys.modules.update(dict.fromkeys({missing}))  # importing one of them raises
runpy.run_module('internimage_mm.env', run_name='__main__')
"""


@pytest.mark.parametrize('missing', ['mmdet', 'mmengine'])
def test_broken_libraries_are_reported_not_raised(missing):
    script = REPORT.format(missing=[missing])
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f'{missing}: '))
    assert ', cannot be imported: ModuleNotFoundError: ' in line
    assert "dcnv3 on cpu runs on backend 'cpu'" in result.stdout


def test_backend_that_cannot_run_is_reported(monkeypatch):
    def refuse(device):
        raise RuntimeError('backend cuda cannot run')

    monkeypatch.setattr(env, 'explain_backend', refuse)
    assert 'dcnv3 on cpu cannot run: backend cuda cannot run' in env.report()


def test_this_environment_has_no_other_conflict_than_a_foreign_torchvision():
    # The package index has no torchvision for CPU builds of torch (see compat.py).
    foreign = env.torchvision_build() not in (None, Version(torch.__version__).local)
    found = env.conflicts()
    assert len(found) == foreign
    assert all('torchvision' in text for text in found)


@pytest.mark.parametrize(
    ('content', 'build'),
    [("__version__ = '0.28.0+cu130'\n", 'cu130'), ("__version__ = '0.28.0'\n", None), ('', None)],
)
def test_what_torchvision_is_built_for(monkeypatch, tmp_path, content, build):
    (tmp_path / 'version.py').write_text(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: spec)
    assert env.torchvision_build() == build


@pytest.mark.parametrize(
    ('versions', 'message'),
    [
        ({'mmdet': '3.3.0', 'onedl-mmdetection': '3.5.1'}, 'overwrite each other'),
        ({'mmengine': '0.10.7', 'setuptools': '82.0.0'}, 'pkg_resources'),
        ({'mmengine': '0.10.7'}, r'pkg_resources, which setuptools \(none\)'),
        ({'mmdet': '3.3.0', 'mmcv': '2.2.0'}, 'mmdet 3.3.0 refuses mmcv 2.2.0'),
    ],
)
def test_conflicts(monkeypatch, versions, message):
    monkeypatch.setattr(
        env, 'installed', lambda name: Version(versions[name]) if name in versions else None
    )
    with pytest.raises(AssertionError, match=message):
        assert not env.conflicts(), '\n'.join(env.conflicts())


@pytest.mark.parametrize(
    ('installed', 'wanted'),
    [(('mmcv', '2.2.0'), 'mmcv==2.1.0'), (('onedl-mmcv', '2.3.6'), 'onedl-mmcv==2.3.6')],
)
def test_mmcv_without_operators(monkeypatch, installed, wanted):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    name, version = installed
    monkeypatch.setattr(env, 'installed', lambda other: Version(version) if other == name else None)
    (conflict,) = (text for text in env.conflicts() if 'no usable operators' in text)
    assert f'python requirements/mmcv_build {wanted} ' in conflict

from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from internimage_mm import env


def test_report_names_the_stack_and_the_backend():
    text = env.report()
    for word in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', "backend 'cpu'"):
        assert word in text
    assert text.count('not installed') < 6


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


def test_mmcv_without_operators(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'mmcv._ext', None)
    assert any('no usable operators' in text for text in env.conflicts())

"""``type='InternImage'`` in the registries of the OpenMMLab stack."""

import importlib
import subprocess
import sys

import pytest
import torch
from backbones.helpers import VARIANTS, golden
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from internimage_mm import InternImage

LIBRARIES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')


@pytest.mark.parametrize('name', VARIANTS)
def test_official_config_pastes_in(name):
    # As from a config file, where dicts are ConfigDicts.
    config = Config(dict(backbone=dict(type='InternImage', **golden(name)['config']))).backbone
    with torch.device('meta'):
        model = MODELS.build(config)
    assert type(model) is InternImage
    assert [k for k, _, _ in golden(name)['keys']] == list(model.state_dict())


@pytest.mark.parametrize('library', LIBRARIES)
def test_found_under_the_default_scope_of_a_library(library):
    models = importlib.import_module(f'{library}.registry').MODELS
    with torch.device('meta'), DefaultScope.overwrite_default_scope(library):
        assert type(models.build(dict(type='InternImage', arch='t'))) is InternImage
        assert type(models.build(dict(type='internimage_mm.InternImage', arch='t'))) is InternImage


def test_scoped_name_needs_no_import():
    code = """
import sys
import torch
from mmengine.registry import MODELS
assert not any(m.startswith(('internimage_mm', 'ops_dcnv3')) for m in sys.modules)
with torch.device('meta'):
    model = MODELS.build(dict(type='internimage_mm.InternImage', arch='tiny'))
print(type(model).__module__, sum(p.numel() for p in model.parameters()))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Number of parameters: golden file full_T.
    assert result.stdout.split()[-2:] == ['internimage_mm.backbones.internimage', '28769520']

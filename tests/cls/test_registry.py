"""Every part is found by name: scoped without any import, and unscoped once imported."""

import subprocess
import sys

import pytest

PARTS = {
    'MODELS': ['ConvPoolingNeck', 'AttentionPoolingNeck', 'MetadataLinearClsHead', 'InternImage'],
    'DATASETS': ['INaturalist2018'],
    'PARAM_SCHEDULERS': ['WarmupCosineLR'],
    'OPTIM_WRAPPER_CONSTRUCTORS': ['ClassificationLayerDecayOptimizerConstructor'],
}


@pytest.mark.parametrize('scoped', [True, False])
def test_names(scoped):
    lines = ['import mmengine.registry']
    if scoped:
        # mmpretrain needs it, on machines whose torchvision has no compiled operators.
        lines += ['import internimage_mm', "prefix = 'internimage_mm.'"]
    else:
        lines += ['import internimage_mm.cls', "prefix = ''"]
    for registry, names in PARTS.items():
        lines += [
            f'assert getattr(mmengine.registry, {registry!r}).get(prefix + {name!r}), {name!r}'
            for name in names
        ]
    result = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_no_name_of_mmpretrain_is_shadowed():
    code = """
import internimage_mm
from mmpretrain.registry import MODELS, DATASETS
import mmpretrain.models, mmpretrain.datasets
theirs = {*MODELS.module_dict, *DATASETS.module_dict}
import internimage_mm.cls
assert not theirs & set(internimage_mm.cls.__all__), theirs & set(internimage_mm.cls.__all__)
assert len(theirs) > 100
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr

"""The classes under their scoped names, with nothing imported beforehand."""

import subprocess
import sys

CLASSES = {
    'MODELS': ['SemanticMask2FormerHead', 'MeanSoftmaxSegTTA'],
    'DATASETS': ['NYUDepthV2Dataset', 'MapillaryCityscapesDataset'],
    'TRANSFORMS': ['MapillaryToCityscapes'],
}


def output_of(code):
    result = subprocess.run(
        [sys.executable, '-c', f'names = {CLASSES}\n{code}'], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_scoped_names_need_no_import():
    output = output_of("""
from mmengine import registry
for kind, classes in names.items():
    for name in classes:
        print(getattr(registry, kind).get(f'internimage_mm.{name}').__module__)
""")
    assert output.count('internimage_mm.seg.') == 5


def test_no_library_has_a_class_of_that_name():
    """Else a library's own class would hide ours under its default scope."""
    output = output_of("""
import importlib
import internimage_mm
for library in ('mmseg', 'mmdet', 'mmpretrain'):
    for part in ('models', 'datasets'):
        importlib.import_module(f'{library}.{part}')
    registry = importlib.import_module(f'{library}.registry')
    for kind, classes in names.items():
        print('clash:', [n for n in classes if n in getattr(registry, kind)._module_dict])
""")
    assert output.count('clash: []') == output.count('clash:') == 9

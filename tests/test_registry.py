"""Our classes by name, in the registries of mmengine and of the libraries."""

import subprocess
import sys

CLASSES = {
    'MODELS': {
        'backbones': [*('InternImage', 'CBInternImage', 'ConvPoolingNeck', 'AttentionPoolingNeck')],
        'det': [
            'CBDINO',
            'CBChannelMapper',
            'CBDINOHead',
            'InternImageDINO',
            'InternImageDINOHead',
        ],
        'seg': ['SemanticMask2FormerHead', 'MeanSoftmaxSegTTA'],
        'cls': ['MetadataLinearClsHead'],
    },
    'DATASETS': {
        'seg': ['NYUDepthV2Dataset', 'MapillaryCityscapesDataset'],
        'cls': ['INaturalist2018'],
    },
    'TRANSFORMS': {'seg': ['MapillaryToCityscapes']},
    'PARAM_SCHEDULERS': {'optim': ['WarmupCosineLR']},
    'OPTIM_WRAPPER_CONSTRUCTORS': {
        'optim': [
            'ClassificationLayerDecayOptimizerConstructor',
            'CustomLayerDecayOptimizerConstructor',
        ]
    },
}


def run(code):
    """Run Python code, which knows ``CLASSES``, where nothing has been imported yet."""
    result = subprocess.run(
        [sys.executable, '-c', f'CLASSES = {CLASSES}\n{code}'], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_scoped_names_need_no_import():
    lines = run("""
from mmengine import registry
for kind, rooms in CLASSES.items():
    for room, names in rooms.items():
        for name in names:
            print(room, getattr(registry, kind).get(f'internimage_mm.{name}').__module__)
""")
    found = [line.split() for line in lines if ' internimage_mm.' in line]
    assert len(found) == 19
    for room, module in found:
        assert module.startswith(f'internimage_mm.{room}.')


def test_plain_names_are_ours_in_every_library():
    """A class of a library with the same name would hide ours under the library's scope."""
    lines = run("""
import importlib
import internimage_mm.cls, internimage_mm.det, internimage_mm.seg
for library in ('mmseg', 'mmdet', 'mmpretrain'):
    for part in ('models', 'datasets', 'engine'):
        importlib.import_module(f'{library}.{part}')
    registry = importlib.import_module(f'{library}.registry')
    for kind, rooms in CLASSES.items():
        for names in rooms.values():
            for name in names:
                print('module:', getattr(registry, kind).get(name).__module__)
""")
    modules = [line.split()[1] for line in lines if line.startswith('module:')]
    assert len(modules) == 3 * 19
    assert all(module.startswith('internimage_mm.') for module in modules)

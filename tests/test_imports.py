"""Which way imports run, and where private names stand, read from the sources.

``tools`` import ``internimage_mm``, which imports ``ops_dcnv3``. In the plugin, ``commands`` and
``training`` stand above the library rooms.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for p in ('ops_dcnv3', 'internimage_mm') for path in (ROOT / p).rglob('*.py'))
OPENMMLAB = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'}
OWN_LIBRARIES = {
    'det': {'mmcv', 'mmdet'},
    'seg': {'mmcv', 'mmseg'},
    'cls': {'mmcv', 'mmpretrain'},
    'attention': {'mmcv'},
}
OP_LIBRARIES = {
    'triton_kernels': {'triton'},
    'onnx': {'onnxruntime', 'onnxscript'},
    'openvino': {'openvino'},
}
# What each library room may import of the plugin, beside itself and COMMON.
ROOMS = {
    'checkpoint': set(),
    'optim': set(),
    'data': {'tiles'},
    'det': {'tiles'},
    'seg': set(),
    'cls': {'backbones'},
    'tiles': set(),
    'backbones': {'checkpoint'},
    'models': {'backbones', 'checkpoint', 'shipped_configs'},
    'deploy': {'backbones', 'checkpoint'},
    'explain': {'backbones', 'checkpoint'},
}
COMMON = {'', 'compat', 'engine', 'errors', 'output_file', 'version'}
ALLOWED_NAMES = {
    *('_check', '_check_value'),  # checks for fake kernels, as in PyTorch's documentation
    '_ParamScheduler',  # the base class of schedulers in mmengine's documentation
    '_core',  # NumPy 2 pickles its functions under this name
}
MAY_USE_PRIVATE_NAMES = {ROOT / 'ops_dcnv3/fast_cpu.py', ROOT / 'internimage_mm/compat.py'}


def name_of(path):
    """``package.module`` of a source file."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


def imported(path, tree, *, lazily):
    """Absolute names of all that a file imports; without ``lazily``, outside functions only."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name_of(path).split('.')[: -node.level] if node.level else []
            module = '.'.join([*parents, *([node.module] if node.module else [])])
            yield from (f'{module}.{alias.name}' for alias in node.names)
        if lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def room(name):
    """``det`` for ``internimage_mm.det.dino``; empty for the package itself."""
    return name.partition('.')[2].partition('.')[0]


def is_private(name):
    return name.startswith('_') and not name.endswith('__') and name != '_'


def wrong_imports(path, tree):
    everywhere, at_import = (set(imported(path, tree, lazily=lazily)) for lazily in (True, False))
    package, own_room = path.relative_to(ROOT).parts[0], room(name_of(path))
    if package == 'ops_dcnv3':
        allowed = {'torch', 'ops_dcnv3', *sys.stdlib_module_names}
        allowed |= OP_LIBRARIES.get(own_room, set())
        return {name for name in everywhere if name.split('.')[0] not in allowed}
    # The rooms of the libraries, and the files of deploy that are called as they are.
    own = OWN_LIBRARIES.get(path.stem if own_room == 'deploy' else own_room, set())
    wrong = {name for name in everywhere if name.split('.')[0] == 'tools'}
    wrong |= {name for name in at_import if name.split('.')[0] in OPENMMLAB - own}
    if own_room in ROOMS:
        allowed = {own_room} | ROOMS[own_room] | COMMON
        wrong |= {name for name in everywhere if name.split('.')[0] in OPENMMLAB - own}
        wrong |= {
            name
            for name in everywhere
            if name.split('.')[0] == 'internimage_mm' and room(name) not in allowed
        }
    return wrong


def private_names(path, tree, ours):
    """Names with a leading underscore that no file of the two packages defines.

    What a class inherits, ``self._name`` or ``super()._name``, is not counted.
    """
    attributes = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) not in ('self', 'super()')
    }
    attributes |= {
        n.args[1].value
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        and getattr(n.func, 'id', '') in ('getattr', 'hasattr')
        and isinstance(n.args[1], ast.Constant)
    }
    parts = {part for name in imported(path, tree, lazily=True) for part in name.split('.')}
    return {name for name in attributes | parts if is_private(name)} - ours - ALLOWED_NAMES


def defined_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
OURS = {name for tree in TREES.values() for name in defined_names(tree)}


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_direction_of_imports(path):
    assert not wrong_imports(path, TREES[path])


@pytest.mark.parametrize('path', sorted(set(SOURCES) - MAY_USE_PRIVATE_NAMES), ids=name_of)
def test_private_names_of_libraries(path):
    assert not private_names(path, TREES[path], OURS)


@pytest.mark.parametrize(
    'place, code, name',
    [
        ('ops_dcnv3/benchmark/op.py', 'def f():\n import internimage_mm', 'internimage_mm'),
        ('ops_dcnv3/backends.py', 'import triton', 'triton'),
        ('internimage_mm/det/dino.py', 'from ..seg import x', 'internimage_mm.seg.x'),
        ('internimage_mm/cls/heads.py', 'def f():\n import mmdet', 'mmdet'),
        ('internimage_mm/env.py', 'try:\n import mmdet.apis\nfinally: 0', 'mmdet.apis'),
        ('internimage_mm/optim/__init__.py', 'from .. import commands', 'internimage_mm.commands'),
        ('internimage_mm/checkpoint/a.py', 'from ..training import b', 'internimage_mm.training.b'),
    ],
)
def test_wrong_imports_are_found(place, code, name):
    assert wrong_imports(ROOT / place, ast.parse(code)) == {name}


@pytest.mark.parametrize(
    'code, name',
    [
        ('import torch\ntorch._C.x()', '_C'),
        ('from torch._prims_common import x', '_prims_common'),
        ('f(model)._schemes["s3"]', '_schemes'),
        ('getattr(module, "_forward_hooks")', '_forward_hooks'),
    ],
)
def test_private_names_are_found(code, name):
    assert private_names(ROOT / 'internimage_mm/env.py', ast.parse(code), {'_own'}) == {name}

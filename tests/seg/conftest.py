"""mmseg's registries, and the tools as functions."""

import importlib.util
import itertools

import pytest
from mmseg.utils import register_all_modules

from .helpers import ROOT

register_all_modules(init_default_scope=False)
_run_numbers = itertools.count()


@pytest.fixture
def run_tool():
    """Call a tool's main() as from a shell; returns what it returns."""

    def run(name, *args, options=()):
        path = ROOT / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # mmengine keeps visualizers and logs by name for the life of the process.
        number = next(_run_numbers)
        names = [f'{key}=seg{number}' for key in ('visualizer.name', 'experiment_name')]
        return module.main([*map(str, args), '--cfg-options', *names, *map(str, options)])

    return run

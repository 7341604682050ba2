"""The files of ``tools`` as functions."""

import importlib.util
import itertools
from pathlib import Path

TOOLS = Path(__file__).parents[1] / 'tools'
_run_numbers = itertools.count()


def load_tool(name):
    """A file of ``tools`` as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name, *args, options=()):
    """Call the ``main`` of a tool as from a shell; returns what it returns."""
    # mmengine keeps visualizers and logs by name for the life of the process.
    names = [f'{key}=run{next(_run_numbers)}' for key in ('visualizer.name', 'experiment_name')]
    return load_tool(name).main([*map(str, args), '--cfg-options', *names, *map(str, options)])

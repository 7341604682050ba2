"""What needs private names of libraries, or mends what is around them."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind


def define_torchvision_schemas() -> None:
    """Let ``import torchvision`` succeed where its compiled operators cannot load.

    Done when ``internimage_mm`` is imported, because torchvision may be imported at any time after.
    Does nothing where torchvision is missing or imported already.

    The package index holds only CUDA builds of torchvision for Linux. With a CPU build of PyTorch
    its library does not load, which torchvision tolerates, except that it registers fake kernels
    for ``nms`` whose schema the library should have brought. mmpretrain imports torchvision, so
    without the two schemas classification does not start. The operators themselves stay
    unavailable.
    """
    package = importlib.util.find_spec('torchvision')
    if package is None or 'torchvision' in sys.modules:
        return
    library = PathFinder.find_spec('_C', package.submodule_search_locations)
    if library is not None:
        with contextlib.suppress(OSError):
            torch.ops.load_library(library.origin)
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f'torchvision::{name}',
                '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
            )


class _NumPyWithFloat(ModuleType):
    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def let_lvis_evaluate() -> None:
    """Give the LVIS API ``numpy.float``, for which it asks and which NumPy 1.24 removed.

    Without it the evaluation fails at its end, after the whole test. The API has mended it; its
    package in the index, 0.5.3, has not. Does nothing where the API is missing.
    """
    if importlib.util.find_spec('lvis'):
        importlib.import_module('lvis.eval').np = _NumPyWithFloat('numpy')  # type: ignore[attr-defined]


def _inductor(name: str) -> Callable:
    """A function of AOTInductor, which PyTorch documents under a private name.

    Raises:
        RuntimeError: This PyTorch has it not.
    """
    function = getattr(importlib.import_module('torch._inductor'), name, None)
    if function is None:
        raise RuntimeError(f'PyTorch {torch.__version__} has no torch._inductor.{name}')
    return function


def compile_package(
    program: torch.export.ExportedProgram, file: str | Path, metadata: dict[str, str]
) -> None:
    """Compile a graph into a ``.pt2`` package with metadata.

    Raises:
        RuntimeError: This PyTorch cannot do it.
    """
    compile_and_package = _inductor('aoti_compile_and_package')
    settings = {
        'aot_inductor.metadata': metadata,
        'cpp.dynamic_threads': True,  # by default the number of this process is compiled in
        # Weights are constants, which oneDNN lays out once, not in each call. With images of any
        # size torch 2.13 stumbles over the strides of its own layouts then.
        'freezing': not program.range_constraints,
    }
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.CONSTANT_TENSOR:  # freezing loses these, and keeps buffers
            spec.kind, spec.persistent = InputKind.BUFFER, True
            program.state_dict[spec.target] = program.constants.pop(spec.target)
    with torch.no_grad():  # else freezing does nothing
        compile_and_package(program, package_path=str(file), inductor_configs=settings)


def load_package(file: str | Path) -> tuple[Callable, dict[str, str]]:
    """A ``.pt2`` package as a function of tensors, and its metadata.

    Raises:
        RuntimeError: This PyTorch cannot do it, or the file is no such package.
    """
    package = _inductor('aoti_load_package')(str(file))
    return package, package.get_metadata()


def allow_recompilations(programs: int) -> None:
    """Let ``torch.compile`` make so many programs of one function. Without it, eight."""
    config = importlib.import_module('torch._dynamo').config
    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        if hasattr(config, name):
            setattr(config, name, max(programs, getattr(config, name)))


try:
    from torch._subclasses import FakeTensorMode
except ImportError:
    FakeTensorMode = None  # type: ignore[assignment,misc]

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    AllocationMode = None
else:

    class AllocationMode(TorchDispatchMode):  # type: ignore[no-redef]
        """While entered, calls a function with each tensor that an operator returns, and with the
        operator."""

        def __init__(self, returned: Callable[[torch.Tensor, Any], None]) -> None:
            super().__init__()
            self.returned = returned

        def __torch_dispatch__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (list, tuple)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.returned(tensor, func)
            return out

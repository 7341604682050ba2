"""Time a third-party CUDA op beside ours on one GPU: ``python against.py official|dcnv4 FOLDER``.

``official``: FOLDER is the folder ``ops_dcnv3`` of InternImage with ``DCNv3`` built in place.
``dcnv4``: FOLDER holds the built package ``DCNv4``. A result that differs from the
reference is not timed. Run by ``tools/gpu_check.sh``.
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import torch

from ops_dcnv3 import dcnv3
from ops_dcnv3.benchmark import SHAPES, TOLERANCES, largest_error, make_inputs

GEOMETRY = (3, 3, 1, 1, 1, 1, 1, 1)  # kernel, stride, padding, dilation, each (h, w)


def official(folder: Path):
    """The op of InternImage, by path: its package has the name of ours."""
    sys.path.insert(0, str(folder))
    path = folder / 'functions' / 'dcnv3_func.py'
    spec = importlib.util.spec_from_file_location('official_dcnv3_func', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with_remove_center = 'remove_center' in path.read_text()

    def call(input, offset, mask, groups):
        more = (False,) if with_remove_center else ()
        channels = input.shape[-1] // groups
        return module.DCNv3Function.apply(
            input, offset, mask, *GEOMETRY, groups, channels, 1.0, 256, *more
        )

    return call


def dcnv4(folder: Path):
    """DCNv4 on offsets and masks of DCNv3, which it takes as one tensor; joining is timed too."""
    sys.path.insert(0, str(folder))
    from DCNv4.functions.dcnv4_func import DCNv4Function

    def call(input, offset, mask, groups):
        size = offset.shape[:3]
        joined = torch.cat(
            [offset.reshape(*size, groups, 18), mask.reshape(*size, groups, 9)], -1
        ).flatten(3)
        joined = torch.nn.functional.pad(joined, (0, -joined.shape[-1] % 8))
        channels = input.shape[-1] // groups
        return DCNv4Function.apply(input, joined, *GEOMETRY, groups, channels, 1.0, 256, False)

    return call


def microseconds(call) -> float:
    """Median over 20 measurements of 10 calls each, on the GPU's clock."""
    for _ in range(10):
        call()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 100)
    return statistics.median(times)


def main(name: str, folder: str) -> int:
    theirs = {'official': official, 'dcnv4': dcnv4}[name](Path(folder).resolve())
    wrong = 0
    print(f'us for one call, ours / {name} / ratio, on {torch.cuda.get_device_name()}')
    for dtype in ('float32', 'float16', 'bfloat16'):
        for shape in SHAPES:
            tensors, grad = make_inputs(shape, getattr(torch, dtype), 'cuda')
            groups = shape[3]
            exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
            truth = dcnv3(*exact, groups=groups, backend='reference')
            truths = [truth, *torch.autograd.grad(truth, exact, grad.double())]

            def ours(*inputs):
                return dcnv3(*inputs[:3], groups=inputs[3], backend='cuda')

            cells = []
            try:
                for call in (ours, theirs):
                    output = call(*tensors, groups)
                    results = [
                        output,
                        *torch.autograd.grad(output, tensors, grad, retain_graph=True),
                    ]
                    error = largest_error(results, truths)
                    if not error < TOLERANCES[dtype]:
                        raise RuntimeError(f'error {error:.1e}, not timed')

                    def forward(call=call, tensors=tensors, groups=groups):
                        with torch.no_grad():
                            call(*tensors, groups)

                    def backward(output=output, tensors=tensors, grad=grad):
                        torch.autograd.grad(output, tensors, grad, retain_graph=True)

                    cells.append((microseconds(forward), microseconds(backward)))
            except (RuntimeError, TypeError, AssertionError) as error:
                who = name if cells else 'ours'
                wrong += who == 'ours'
                print(f'{dtype:9} {shape}: {who}: {str(error).splitlines()[0]}')
                continue
            (our_f, our_b), (their_f, their_b) = cells
            print(
                f'{dtype:9} {shape}: forward {our_f:.1f} / {their_f:.1f} / {their_f / our_f:.2f}x, '
                f'backward {our_b:.1f} / {their_b:.1f} / {their_b / our_b:.2f}x'
            )
    return wrong


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

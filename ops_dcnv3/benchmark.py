"""``python -m ops_dcnv3.benchmark``: time every backend that can run, after checking its results.

The five default shapes are those of InternImage-T at 800x1280 and one with 32 channels per group.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backends import available_backends
from .functional import dcnv3

Shape = tuple[int, int, int, int, int]

SHAPES: tuple[Shape, ...] = (
    (1, 200, 320, 4, 16),
    (1, 100, 160, 8, 16),
    (1, 50, 80, 16, 16),
    (1, 25, 40, 32, 16),
    (1, 50, 80, 16, 32),
)
"""(N, H, W, groups, channels per group)"""

TOLERANCES = {'float64': 1e-9, 'float32': 1e-4, 'bfloat16': 2e-2, 'float16': 5e-3}
"""Largest error, relative to the largest value, with which a backend is timed."""


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Return input, offset and mask that require gradients, and an output gradient."""
    batch, height, width, groups, channels = shape
    rng = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, height, width, *size, generator=rng)

    mask = normal(groups, 9).softmax(-1).flatten(3)
    # Away from integer positions, where rounding decides on which side of the jump a gradient is.
    offset = normal(groups * 18)
    offset = offset.floor() + 0.1 + 0.8 * offset.frac().abs()
    tensors = [normal(groups * channels), offset, mask, normal(groups * channels)]
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    return [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]


def forward_backward(tensors: Sequence[Tensor], grad: Tensor, groups: int, backend: str) -> list:
    output = dcnv3(*tensors, groups=groups, backend=backend)
    return [output, *torch.autograd.grad(output, tensors, grad)]


def largest_error(results: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """Largest error of the results, each relative to the largest value of its truth."""
    return max(
        ((result.double() - truth).abs().max() / truth.abs().max()).item()
        for result, truth in zip(results, truths, strict=True)
    )


def median_ms(call: Callable[[], object], device: str, seconds: float) -> float:
    """Median time of a call in ms over at least 3 repetitions and about ``seconds``."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        times.append(once())
    return statistics.median(times) * 1e3


def run(shapes: Sequence[Shape], dtype: str, device: str, seconds: float) -> list[dict]:
    """Check and time every backend; one row for each shape and backend.

    Raises:
        RuntimeError: A backend's results are wrong.
    """
    rows = []
    for shape in shapes:
        tensors, grad = make_inputs(shape, getattr(torch, dtype), device)
        groups = shape[3]
        # In float64 positions of float32 tensors are exact, so this truth is for all dtypes.
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        truth = forward_backward(exact, grad.double(), groups, 'reference')
        for name, (ok, _) in available_backends(device).items():
            if not ok:
                continue
            error = largest_error(forward_backward(tensors, grad, groups, name), truth)
            if not error < TOLERANCES[dtype]:
                raise RuntimeError(
                    f'backend {name!r} is wrong on {shape}: error {error:.1e}, '
                    f'allowed {TOLERANCES[dtype]:.1e}; it is not timed'
                )

            def forward(name=name, tensors=tensors, groups=groups):
                with torch.no_grad():
                    dcnv3(*tensors, groups=groups, backend=name)

            def both(name=name, tensors=tensors, grad=grad, groups=groups):
                forward_backward(tensors, grad, groups, name)

            rows.append(
                dict(
                    shape=shape,
                    backend=name,
                    error=error,
                    forward_ms=median_ms(forward, device, seconds),
                    forward_backward_ms=median_ms(both, device, seconds),
                )
            )
    return rows


def add_ratios(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """Add to each row how often ``reference`` takes its time; return geometric means by backend."""
    logs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        (reference,) = (
            r for r in rows if r['backend'] == 'reference' and r['shape'] == row['shape']
        )
        row['forward_ratio'] = reference['forward_ms'] / row['forward_ms']
        row['forward_backward_ratio'] = (
            reference['forward_backward_ms'] / row['forward_backward_ms']
        )
        logs.setdefault(row['backend'], []).append(
            (math.log(row['forward_ratio']), math.log(row['forward_backward_ratio']))
        )
    return {
        name: (
            math.exp(statistics.mean(forward for forward, _ in values)),
            math.exp(statistics.mean(both for _, both in values)),
        )
        for name, values in logs.items()
    }


def processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parse_shape(text: str) -> Shape:
    values = tuple(int(value) for value in text.split(','))
    if len(values) != 5 or min(values) < 1:
        raise argparse.ArgumentTypeError(f'a shape is N,H,W,groups,channels per group, got {text}')
    return values  # type: ignore[return-value]  # the length is checked


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--shapes', nargs='+', type=parse_shape, default=SHAPES)
    parser.add_argument('--dtype', choices=TOLERANCES, default='float32')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help='CPU threads (default: as torch chooses)')
    parser.add_argument('--seconds', type=float, default=1.0, help='time spent on each median')
    parser.add_argument('--json', metavar='FILE', help='write the rows to this file')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    name = torch.cuda.get_device_name() if args.device == 'cuda' else processor()
    print(f'{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {args.dtype}')
    print('shape is (N, H, W, groups, channels per group); times are medians in ms')
    rows = run(args.shapes, args.dtype, args.device, args.seconds)
    means = add_ratios(rows)
    line = '{:<22} {:<10} {:>9} {:>10} {:>10} {:>13} {:>10}'
    print(
        line.format('shape', 'backend', 'error', 'forward', 'reference/', 'fwd + bwd', 'reference/')
    )
    for row in rows:
        print(
            line.format(
                str(row['shape']),
                row['backend'],
                f'{row["error"]:.1e}',
                f'{row["forward_ms"]:.2f}',
                f'{row["forward_ratio"]:.1f}x',
                f'{row["forward_backward_ms"]:.2f}',
                f'{row["forward_backward_ratio"]:.1f}x',
            )
        )
    for backend, (forward, both) in means.items():
        print(f'geometric mean, {backend}: forward {forward:.1f}x, forward + backward {both:.1f}x')
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(rows, file, indent=1)


if __name__ == '__main__':
    main()

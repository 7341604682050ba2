"""The op alone: every backend that can run, and third-party ops, after checking their results."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops_dcnv3.backends import available_backends
from ops_dcnv3.functional import dcnv3

from . import measure

Shape = tuple[int, int, int, int, int]
Op = Callable[..., Tensor]
"""``op(input, offset, mask, groups, logits)``"""

SHAPES: tuple[Shape, ...] = (
    (1, 200, 320, 4, 16),
    (1, 100, 160, 8, 16),
    (1, 50, 80, 16, 16),
    (1, 25, 40, 32, 16),
    (1, 50, 80, 16, 32),
)
"""(N, H, W, groups, channels per group) of InternImage-T at 800x1280, and one with 32 channels"""

PASSES = {'forward': 'forward', 'forward_backward': 'forward + backward'}

TOLERANCES = {'float64': 1e-9, 'float32': 1e-4, 'bfloat16': 2e-2, 'float16': 5e-3}
"""Largest error, relative to the largest value, with which a backend is timed."""

# What the official functions call the arguments of a 3x3 convolution with one pixel of padding.
OFFICIAL_ARGUMENTS = dict(
    **{f'{name}_{axis}': n for name, n in [('kernel', 3), ('stride', 1)] for axis in 'hw'},
    **{f'{name}_{axis}': n for name, n in [('pad', 1), ('dilation', 1)] for axis in 'hw'},
    offset_scale=1.0,
    im2col_step=256,
    remove_center=False,
)


def make_inputs(
    shape: Shape, dtype: torch.dtype, device: str, logits: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Return input, offset and mask that require gradients, and an output gradient."""
    batch, height, width, groups, channels = shape
    rng = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, height, width, *size, generator=rng)

    mask = normal(groups, 9)
    mask = (mask if logits else mask.softmax(-1)).flatten(3)
    # Away from integer positions, where rounding decides on which side of the jump a gradient is.
    offset = normal(groups * 18)
    offset = offset.floor() + 0.1 + 0.8 * offset.frac().abs()
    tensors = [normal(groups * channels), offset, mask, normal(groups * channels)]
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    return [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]


def backend_op(name: str | None) -> Op:
    """Return our op on a backend, or on the one that is chosen if none is named."""

    def op(input: Tensor, offset: Tensor, mask: Tensor, groups: int, logits: bool) -> Tensor:
        return dcnv3(input, offset, mask, groups=groups, mask_is_logits=logits, backend=name)

    return op


def third_party_op(spec: str) -> Op:
    """Return the op that ``MODULE:FUNCTION`` names.

    It has the signature of the official functions: input, offset, mask, and further parameters that
    are filled in by their names (:data:`OFFICIAL_ARGUMENTS`, ``group``, ``group_channels``). An
    ``autograd.Function`` may be named as well. A parameter ``mask_is_logits`` is told of
    ``--logits``; without it, the softmax is done before the call, and timed.

    Raises:
        ValueError: There is no such function, or it has an unknown parameter.
    """
    module, _, name = spec.partition(':')
    try:
        target: Any = functools.reduce(getattr, name.split('.'), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'--against {spec}: {error}') from error
    if isinstance(target, type) and issubclass(target, torch.autograd.Function):
        call, skip = target.apply, 4  # its first parameter is ctx
        parameters = list(inspect.signature(target.forward).parameters)
    else:
        call, skip = target, 3
        parameters = list(inspect.signature(target).parameters)
    known = {*OFFICIAL_ARGUMENTS, 'group', 'group_channels', 'mask_is_logits'}
    parameters = parameters[skip:]
    if unknown := [parameter for parameter in parameters if parameter not in known]:
        raise ValueError(
            f'--against {spec}: unknown parameters {", ".join(unknown)}; after input, offset and '
            f'mask any of {", ".join(sorted(known))} are known'
        )

    def op(input: Tensor, offset: Tensor, mask: Tensor, groups: int, logits: bool) -> Tensor:
        if logits and 'mask_is_logits' not in parameters:
            mask = mask.unflatten(-1, (groups, 9)).softmax(-1).flatten(3)
        values = dict(
            OFFICIAL_ARGUMENTS,
            group=groups,
            group_channels=input.shape[-1] // groups,
            mask_is_logits=logits,
        )
        return call(input, offset, mask, *(values[parameter] for parameter in parameters))

    return op


def forward_backward(
    op: Op, tensors: Sequence[Tensor], grad: Tensor, groups: int, logits: bool
) -> list[Tensor]:
    output = op(*tensors, groups, logits)
    if not output.requires_grad:
        raise RuntimeError('its output does not require gradients')
    return [output, *torch.autograd.grad(output, tensors, grad)]


def truth(tensors: Sequence[Tensor], grad: Tensor, groups: int, logits: bool) -> list[Tensor]:
    """Return output and gradients of ``reference`` in float64.

    There positions of float32 tensors are exact, so this is the truth for all dtypes.
    """
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    return forward_backward(backend_op('reference'), exact, grad.double(), groups, logits)


def largest_error(results: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """Largest error of the results, each relative to the largest value of its truth; or NaN."""
    return measure.largest(
        ((result.double() - truth).abs().max() / truth.abs().max()).item()
        for result, truth in zip(results, truths, strict=True)
    )


def check(results: Sequence[Tensor], truths: Sequence[Tensor], dtype: str) -> float:
    """Return the error of an op's results.

    Raises:
        RuntimeError: It is larger than :data:`TOLERANCES` allows.
    """
    error = largest_error(results, truths)
    if not error < TOLERANCES[dtype]:
        raise RuntimeError(
            f'wrong: error {error:.1e}, allowed {TOLERANCES[dtype]:.1e}; it is not timed'
        )
    return error


def check_calls(
    calls: Mapping[str, Callable[[], list[Tensor]]],
    tensors: Sequence[Tensor],
    grad: Tensor,
    truths: Sequence[Tensor],
    dtype: str,
) -> tuple[float, Exception | None]:
    """Return the error of an op's results, and what its backward raised, or None.

    Raises:
        RuntimeError: The error is too large, see :func:`check`, or the op changes its arguments in
            place. They are put right again, since other ops are timed with them.
        Exception: Whatever the forward alone raises.
    """
    names = ('input', 'offset', 'mask', "the output's gradient")
    arguments = dict(zip(names, (*tensors, grad), strict=True))
    copies = {name: tensor.detach().clone() for name, tensor in arguments.items()}
    failure = None
    try:
        results = [calls['forward']()]
        try:
            results.append(calls['forward_backward']())
        except Exception as error:
            failure = error
    finally:
        changed = [name for name, copy in copies.items() if not torch.equal(arguments[name], copy)]
        with torch.no_grad():
            for name in changed:
                arguments[name].copy_(copies[name])
    if changed:
        raise RuntimeError(f'it changes {", ".join(changed)} in place; it is not timed')
    errors = [check(found, truths[: len(found)], dtype) for found in results]
    return max(errors), failure


def moved_bytes(tensors: Sequence[Tensor], grad: Tensor) -> tuple[int, int]:
    """Bytes that a forward, and a forward and a backward, must read or write at the least.

    Forward: input, offset and mask, and the output. Backward: these three and the output's
    gradient, and the three gradients.
    """
    inputs = sum(tensor.nbytes for tensor in tensors)
    forward = inputs + grad.nbytes
    return forward, forward + 2 * inputs + grad.nbytes


def make_calls(
    op: Op, tensors: Sequence[Tensor], grad: Tensor, groups: int, logits: bool
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the calls to measure by name; they return output, and output and gradients."""
    # No graph is made of these. no_grad() would take a tenth of a small call, and some ops refuse
    # tensors that require gradients in it too.
    plain = [tensor.detach() for tensor in tensors]
    return dict(
        forward=lambda: [op(*plain, groups, logits)],
        forward_backward=lambda: forward_backward(op, tensors, grad, groups, logits),
    )


def load_bound_ms(shape: Shape, dtype: str, seconds: float) -> float:
    """Time of the loads and multiply-adds of a forward alone, on data in the first-level cache."""
    batch, height, width, groups, channels = shape
    input = torch.empty(batch, height, width, groups * channels, dtype=getattr(torch, dtype))
    return measure.median_ms(lambda: torch.ops.ops_dcnv3.load_bound(input, groups), 'cpu', seconds)


def run(
    shapes: Sequence[Shape],
    dtype: str,
    device: str,
    seconds: float,
    logits: bool = False,
    against: Sequence[str] = (),
) -> dict[str, Any]:
    """Check and time every backend, and third-party ops.

    Returns:
        The floors, ``rows``, one for each shape and op, and ``means`` of the ratios. Where a
        third-party op has no backward, ``forward_backward`` is None and ``no_backward`` says why.

    Raises:
        RuntimeError: A backend's results are wrong. (A third-party op that is wrong, changes its
            arguments or fails in the forward gets a row that says so.)
    """
    ours = {name: backend_op(name) for name, (ok, _) in available_backends(device).items() if ok}
    theirs = {spec: third_party_op(spec) for spec in against}
    bandwidth = measure.copy_bandwidth(device, seconds) / 1e9
    rows: list[dict[str, Any]] = []
    timed = []
    for shape in shapes:
        groups = shape[3]
        bound = load_bound_ms(shape, dtype, seconds) if 'cpu' in ours else None
        tensors, grad = make_inputs(shape, getattr(torch, dtype), device, logits)
        truths = truth(tensors, grad, groups, logits)
        for name, op in {**ours, **theirs}.items():
            row: dict[str, Any] = dict(
                shape=shape, op=name, load_bound_ms=bound, bytes=moved_bytes(tensors, grad)
            )
            rows.append(row)
            calls = make_calls(op, tensors, grad, groups, logits)
            try:
                row['error'], failure = check_calls(calls, tensors, grad, truths, dtype)
                if failure and name in ours:
                    raise failure
            except Exception as error:
                if name in ours:
                    raise RuntimeError(f'backend {name!r}, {shape}: {error}') from error
                row['failure'] = measure.first_line(error)
                continue
            if failure:
                del calls['forward_backward']
                row.update(forward_backward=None, no_backward=measure.first_line(failure))
            timed.append((row, calls))
        del truths
    measure.measure_calls(timed, device, seconds)
    for row, calls in timed:
        reference = find(rows, row['shape'], 'reference')
        for key, moved in zip(PASSES, row['bytes'], strict=True):
            if key not in calls:
                continue
            values = row[key]
            values['gb_per_s'] = moved / values['ms'] / 1e6
            values['of_copy_floor'] = values['gb_per_s'] / bandwidth
            values['ratio'] = reference[key]['ms'] / values['ms']
        bound = row['load_bound_ms']
        row['forward']['over_load_bound'] = bound and row['forward']['ms'] / bound
    pairs = [(name, other) for name in ours for other in ('reference', *theirs) if name != other]
    means = [mean_ratios(rows, name, other) for name, other in pairs]
    return dict(copy_gb_per_s=bandwidth, rows=rows, means=[mean for mean in means if mean])


def find(rows: Sequence[dict[str, Any]], shape: Shape, op: str) -> dict[str, Any]:
    (row,) = (row for row in rows if row['shape'] == shape and row['op'] == op)
    return row


def mean_ratios(rows: Sequence[dict[str, Any]], op: str, other: str) -> dict[str, Any] | None:
    """Return geometric and smallest ratios of the times of two ops, of shapes where both ran.

    The ratios of a pass are None if an op lacks it.
    """
    pairs = [
        (find(rows, shape, op), find(rows, shape, other))
        for shape in dict.fromkeys(row['shape'] for row in rows)
    ]
    pairs = [pair for pair in pairs if not any('failure' in row for row in pair)]
    if not pairs:
        return None
    mean: dict[str, Any] = dict(op=op, over=other, shapes=len(pairs))
    for key in PASSES:
        if not all(row[key] for pair in pairs for row in pair):
            mean[key] = None
            continue
        ratios = [theirs[key]['ms'] / ours[key]['ms'] for ours, theirs in pairs]
        mean[key] = dict(mean=measure.geometric_mean(ratios), smallest=min(ratios))
    return mean


def report(result: dict[str, Any]) -> None:
    """Print what :func:`run` has returned."""

    def cell(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    print(f'copy floor: {result["copy_gb_per_s"]:.1f} GB/s, read and written')
    width = max(len(row['op']) for row in result['rows'])
    line = f'{{:<22}} {{:<{width}}} ' + '{:>8} {:>9} {:>10} {:>7} {:>8} {:>8} {:>9}'
    for key, title in PASSES.items():
        print(f'\n{title}')
        head = ('ms', 'reference/', 'GB/s', 'of floor', '/ bound', 'peak MiB')
        print(line.format('shape', 'op', 'error', *head))
        for row in result['rows']:
            start = (str(row['shape']), row['op'])
            if 'failure' in row:
                print(line.format(*start, *[''] * 7).rstrip(), row['failure'])
                continue
            values = row[key]
            if values is None:
                print(line.format(*start, *['-'] * 7), f'no backward: {row["no_backward"]}')
                continue
            print(
                line.format(
                    *start,
                    f'{row["error"]:.1e}',
                    f'{values["ms"]:.3f}',
                    f'{values["ratio"]:.1f}x',
                    f'{values["gb_per_s"]:.1f}',
                    f'{values["of_copy_floor"]:.0%}',
                    cell(values.get('over_load_bound'), '.2f'),
                    cell(values['peak_mib'], '.1f'),
                )
            )
    print('\ngeometric mean of the ratios of times, and the smallest')
    for mean in result['means']:
        texts = [
            f'{title} {mean[key]["mean"]:.1f}x, {mean[key]["smallest"]:.1f}x'
            if mean[key]
            else f'{title} -'
            for key, title in PASSES.items()
        ]
        print(f'{mean["op"]} over {mean["over"]}, {mean["shapes"]} shapes: {"; ".join(texts)}')

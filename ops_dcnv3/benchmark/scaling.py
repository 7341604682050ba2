"""How the time of the op grows with the image, the batch and the threads."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops_dcnv3.backends import select_backend

from . import measure, op

SIDES = (64, 128, 256, 512, 1024, 2048)
"""Of square images, in pixels; the op sees a quarter (stride 4) with 4 groups of 16 channels."""

BATCHES = (1, 4, 16)

ROUNDS = 4
"""How often all cases are timed, so that a slow minute of the machine is not that of one case."""

CALL_SIDE = 4
"""Side of the image with a single output pixel, whose time is that of the call itself."""

AIM = 1.5
"""How much longer than the least the time per output pixel should be at most."""

NUMBERS_PER_PIXEL = 64 + 72 + 36 + 64
"""Of input, offset, mask and output gradient. Those of all cases are kept; while a case is made or
run there are as many again, of which halves have some in float32."""

USED_MEMORY = 0.7
"""Share of the available memory that may be used; in float32 all cases need about 11 GiB."""

MAX_CHECKED_PIXELS = 2**14
"""Output pixels that are compared with ``reference`` at once."""

CHECK_BYTES = 40 * 2**10 * MAX_CHECKED_PIXELS
"""What ``reference`` needs for them."""

_TIMES = {'ns_per_pixel': 'time per output pixel', 'net_ns_per_pixel': 'net'}


def run(
    dtype: str,
    device: str,
    seconds: float,
    logits: bool,
    sides: Sequence[int] = SIDES,
    batches: Sequence[int] = BATCHES,
) -> list[dict[str, Any]]:
    """Time the backend that calls get by default, on one thread and on all that torch now has.

    The largest cases are left out, with a warning, where they do not fit the memory.

    Memory that is freed is kept (:func:`measure.freed_memory_kept`): else the largest cases would
    show how the system hands out and clears new pages for their results.

    Returns:
        A row for each image, batch and number of threads, with the least time in ms and in ns for
        each output pixel, and ns without the time of the call itself, which the first rows measure.

    Raises:
        RuntimeError: The results are wrong.
    """
    backend, _ = select_backend(torch.device(device), None)
    call = op.backend_op(None)
    most = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    timed = []
    cases = _fitting(list(itertools.product(sides, batches)), getattr(torch, dtype), device)
    for side, batch in [(CALL_SIDE, 1), *cases]:
        shape = (batch, side // 4, side // 4, 4, 16)
        pixels = _pixels(side, batch)
        tensors, grad = op.make_inputs(shape, getattr(torch, dtype), device, logits)
        check(call, tensors, grad, logits, dtype)
        counts = (most,) if device == 'cuda' else sorted({1, most})
        case_rows: list[dict[str, Any]] = [
            dict(side=side, batch=batch, backend=backend, threads=threads) for threads in counts
        ]
        rows += case_rows
        for key, passes in op.make_calls(call, tensors, grad, 4, logits).items():
            for row in case_rows:
                row[key] = dict(ms=math.inf)
            timed.append((key, pixels, case_rows, passes))
    try:
        with measure.freed_memory_kept():
            for _, (key, pixels, case_rows, passes) in itertools.product(range(ROUNDS), timed):
                # In turn, so that what else the machine does falls on all numbers of threads alike.
                calls = [functools.partial(_call_on, row['threads'], passes) for row in case_rows]
                times = measure.least_ms(calls, device, seconds / ROUNDS)
                for row, ms in zip(case_rows, times, strict=True):
                    ms = min(ms, row[key]['ms'])
                    row[key] = dict(ms=ms, ns_per_pixel=ms * 1e6 / pixels)
    finally:
        torch.set_num_threads(most)
    for row in rows:
        single = next(r for r in rows if (r['side'], r['batch']) == (row['side'], row['batch']))
        alone = next(r for r in rows if r['threads'] == row['threads'])
        for key in op.PASSES:
            row[key]['speed_up'] = single[key]['ms'] / row[key]['ms']
            share = 1 - alone[key]['ms'] / row[key]['ms']
            row[key]['net_ns_per_pixel'] = row[key]['ns_per_pixel'] * share
    return rows


def check(call: op.Op, tensors: Sequence[Tensor], grad: Tensor, logits: bool, dtype: str) -> None:
    """Compare a call with ``reference``: all of it, or the first, middle and last images or rows.

    Raises:
        RuntimeError: Its results are wrong.
    """
    results = op.forward_backward(call, tensors, grad, 4, logits)
    batch, height, width, _ = grad.shape
    images = min(batch, max(1, MAX_CHECKED_PIXELS // (height * width)))
    rows = min(height, MAX_CHECKED_PIXELS // width)
    # How many rows a point may lie away: offset, kernel, and the second row it is read from. So
    # close to a cut, results depend on what is cut off.
    reach = math.ceil(tensors[1].detach().abs().max().item()) + 2
    for part in range(3):
        image, row = (batch - images) * part // 2, (height - rows) * part // 2
        cut = (slice(image, image + images), slice(row, row + rows))
        truths = op.truth([tensor[cut] for tensor in tensors], grad[cut], 4, logits)
        inner = slice(row and reach, rows if row + rows == height else rows - reach)
        op.check([r[cut][:, inner] for r in results], [t[:, inner] for t in truths], dtype)
        if images == batch and rows == height:
            break


def _pixels(side: int, batch: int) -> int:
    return batch * (side // 4) ** 2


def _fitting(
    cases: Sequence[tuple[int, int]], dtype: torch.dtype, device: str
) -> list[tuple[int, int]]:
    """Return the cases (side, batch) but for the largest that do not fit; warn of these."""
    room = USED_MEMORY * measure.available_bytes(device) - CHECK_BYTES
    used, fitting = 0, set()
    for case in sorted(cases, key=lambda case: _pixels(*case)):
        numbers = _pixels(*case) * NUMBERS_PER_PIXEL
        needed = numbers * dtype.itemsize
        if used + needed + numbers * max(dtype.itemsize, 4) > room:
            warnings.warn(
                f'left out for want of memory: image {case[0]}, batch {case[1]}', stacklevel=3
            )
            continue
        used += needed
        fitting.add(case)
    return [case for case in cases if case in fitting]


def _call_on(threads: int, call: measure.Call) -> None:
    if torch.get_num_threads() != threads:  # a call that does not count comes first, and sets it
        torch.set_num_threads(threads)
    call()


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`run` has returned."""
    print(
        f'backend {rows[0]["backend"]}, square images at stride 4, 4 groups of 16 channels; '
        f'compared with reference, three parts of those above {MAX_CHECKED_PIXELS} output pixels; '
        'least times'
    )
    line = '{:>6} {:>6} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}'
    for key, title in op.PASSES.items():
        print(f'\n{title}')
        print(
            line.format(
                *('image', 'batch', 'threads', 'ms', 'ns/pixel', '/ least', 'net', '/ least'),
                'speed-up',
            )
        )
        ratios = {name: _over_least(rows, key, name) for name in _TIMES}
        for i, row in enumerate(rows):
            cells = []
            for name in _TIMES:
                ratio = ratios[name][i]
                cells += [f'{row[key][name]:.1f}', '-' if ratio is None else f'{ratio:.2f}x']
            print(
                line.format(
                    row['side'],
                    row['batch'],
                    row['threads'],
                    f'{row[key]["ms"]:.3f}',
                    *cells,
                    f'{row[key]["speed_up"]:.2f}x',
                )
            )
        for name, meaning in _TIMES.items():
            cases = [
                (ratio, row)
                for ratio, row in zip(ratios[name], rows, strict=True)
                if ratio is not None and row['side'] != CALL_SIDE
            ]
            if not cases:
                continue
            most, row = max(cases, key=lambda case: case[0])
            within = sum(ratio <= AIM for ratio, _ in cases)
            print(
                f'{meaning}: at most {most:.2f}x the least (image {row["side"]}, batch '
                f'{row["batch"]}, threads {row["threads"]}), {within} of {len(cases)} within {AIM}x'
            )
    print(f'\nnet: without the time of a call on one output pixel, image {CALL_SIDE}')


def _over_least(rows: Sequence[dict[str, Any]], key: str, name: str) -> list[float | None]:
    """Return each row's time over the least with as many threads, or None where it is not positive.

    What a case takes longer than a call may be lost in noise.
    """
    least: dict[int, float] = {}
    for row in rows:
        if row['side'] != CALL_SIDE and row[key][name] > 0:
            threads = row['threads']
            least[threads] = min(row[key][name], least.get(threads, math.inf))
    return [
        row[key][name] / least[row['threads']]
        if row[key][name] > 0 and row['threads'] in least
        else None
        for row in rows
    ]

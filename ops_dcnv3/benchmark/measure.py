"""How the benchmarks measure: time, peak memory, the two floors, and the machine."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], object]

MIB = 2**20
COPY_BYTES = 256 * MIB  # beyond all caches
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of mallopt()


def processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, str | int | None]:
    """Return what a measurement depends on: processor, instruction set, threads, versions, GPU."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        'processor': processor(),
        'instruction set': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'GPU': torch.cuda.get_device_name() if device == 'cuda' else None,
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'triton': version('triton'),
        'CUDA': torch.version.cuda,
        'mmpretrain': version('mmpretrain') or version('onedl-mmpretrain'),
    }


def median_ms(call: Call, device: str, seconds: float) -> float:
    """Median time of a call in ms, see :func:`medians_ms`."""
    return medians_ms([call], device, seconds)[0]


def medians_ms(calls: Sequence[Call], device: str, seconds: float) -> list[float]:
    """Median time of each call in ms, see :func:`repeated_seconds`."""
    return [1e3 * statistics.median(times) for times in repeated_seconds(calls, device, seconds)]


def least_ms(calls: Sequence[Call], device: str, seconds: float) -> list[float]:
    """Least time of each call in ms, see :func:`repeated_seconds`.

    What else a machine does only adds to a time, so this is the better number where small
    differences between calls matter; a median tells more of what a user has to wait for.
    """
    return [1e3 * min(times) for times in repeated_seconds(calls, device, seconds)]


def repeated_seconds(calls: Sequence[Call], device: str, seconds: float) -> list[list[float]]:
    """Times of each call, after one to warm up.

    Several take turns, so that what else the machine does falls on all alike: one call that does
    not count, which brings memory and caches back, and two that do. At least 3 repetitions, 200 at
    most, and about ``seconds`` for the shortest. On a GPU the time between two events on its own
    clock, over 10 calls at once.
    """
    measure = _gpu_seconds if device == 'cuda' else _wall_seconds
    for call in calls:
        measure(call)
    times: list[list[float]] = [[] for _ in calls]
    while any(len(t) < 3 or (sum(t) < seconds and len(t) < 200) for t in times):
        for call, taken in zip(calls, times, strict=True):
            if len(calls) > 1:
                measure(call)
                taken.append(measure(call))
            taken.append(measure(call))
    return times


def _wall_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@functools.cache
def _large_matrix() -> torch.Tensor:
    return torch.zeros(4096, 4096, device='cuda')


def _gpu_seconds(call: Call, calls: int = 10) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The GPU is busy for a few ms while Python fills its queue: else a kernel of some microseconds
    # would be found to take as long as it takes to launch.
    matrix = _large_matrix()
    for _ in range(3):
        torch.mm(matrix, matrix)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def measure_calls(
    rows: Sequence[tuple[dict[str, Any], Mapping[str, Call]]],
    device: str,
    seconds: float,
    *,
    in_turn: bool = False,
) -> None:
    """For each row and its named calls, set ``row[name]`` to ``ms`` and ``peak_mib``.

    ``in_turn``: the calls of one name take turns, with :func:`freed_memory_kept`. For long calls;
    short ones would drive each other's data from the caches.
    """
    if in_turn:
        for name in dict.fromkeys(name for _, calls in rows for name in calls):
            named = [(row, calls[name]) for row, calls in rows if name in calls]
            with freed_memory_kept():
                medians = medians_ms([call for _, call in named], device, seconds)
            for (row, _), ms in zip(named, medians, strict=True):
                row[name] = dict(ms=ms)
    else:
        for row, calls in rows:
            for name, call in calls.items():
                row[name] = dict(ms=median_ms(call, device, seconds))
    # Last, because it changes what the times depend on.
    for row, calls in rows:
        for name, call in calls.items():
            peak = peak_bytes(call, device)
            row[name]['peak_mib'] = None if peak is None else peak / MIB


def available_bytes(device: str) -> float:
    """Return the memory that can be had, on Linux or a GPU; infinite elsewhere.

    Within a container at most what it may use.
    """
    if device == 'cuda':
        return torch.cuda.mem_get_info()[0]
    room = math.inf
    for path, pattern, unit in (
        ('/proc/meminfo', r'MemAvailable: *(\d+) kB', 1024),
        ('/sys/fs/cgroup/memory.max', r'(\d+)', 1),
        ('/sys/fs/cgroup/memory/memory.limit_in_bytes', r'(\d+)', 1),
    ):
        try:
            with open(path, encoding='ascii') as file:
                found = re.search(pattern, file.read())
        except OSError:
            continue
        if found:
            room = min(room, int(found[1]) * unit)
    return room


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep memory that is freed, on Linux with glibc; elsewhere do nothing.

    Otherwise it depends on what other calls have left in its heap whether it returns all memory
    after each call and asks for new pages in the next one, of which a backbone needs 100000.
    """
    try:
        c_library = ctypes.CDLL('libc.so.6')
        c_library.mallopt(_M_TRIM_THRESHOLD, -1)
        c_library.mallopt(_M_MMAP_MAX, 0)
    except (OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        c_library.mallopt(_M_MMAP_MAX, 2**16)  # the defaults of both
        c_library.mallopt(_M_TRIM_THRESHOLD, 2**17)
        c_library.malloc_trim(0)


def peak_bytes(call: Call, device: str) -> int | None:
    """Return the most memory in use at any time during a call beyond that before it.

    The call must have run once, so that what it keeps for good is not counted.

    On a GPU by PyTorch's allocator. On the CPU by the resident set of the process, which the kernel
    counts in pages: nothing a library allocates by itself escapes it, unlike PyTorch's profiler.
    It exists on Linux only, not on every one; None elsewhere. From the first call on, the C library
    hands back what is freed at once, so that only memory in use is counted; that makes allocations
    slower.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        c_library = ctypes.CDLL('libc.so.6')
        c_library.mallopt(_M_MMAP_THRESHOLD, 2**16)
        c_library.malloc_trim(0)
        with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
            file.write('5')  # the peak so far is forgotten
    except (OSError, AttributeError):
        return None
    resident = _resident_bytes('VmRSS')
    call()
    peak = _resident_bytes('VmHWM')
    return None if resident is None or peak is None else peak - resident


def _resident_bytes(field: str) -> int | None:
    with open('/proc/self/status', encoding='ascii') as file:
        for line in file:
            if line.startswith(field + ':'):
                return int(line.split()[1]) * 1024
    return None


def copy_bandwidth(device: str, seconds: float) -> float:
    """Bytes read and written per second by ``copy_`` of a tensor."""
    source = torch.ones(COPY_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), device, seconds)
    return (source.nbytes + target.nbytes) / ms * 1e3


def largest(errors: Iterable[float]) -> float:
    """The largest error, or NaN if one is NaN, which Python's ``max`` may drop."""
    return torch.tensor(list(errors), dtype=torch.float64).max().item()


def first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.mean(math.log(value) for value in values))


def parse_sizes(text: str, expected: str) -> tuple[int, ...]:
    """Return as many positive integers as ``expected`` names, separated by commas."""
    try:
        values = tuple(int(value) for value in text.split(','))
    except ValueError:
        values = ()
    if len(values) != len(expected.split(',')) or min(values) < 1:
        raise argparse.ArgumentTypeError(f'{expected} expected, all positive integers, got {text}')
    return values


def add_options(parser: argparse.ArgumentParser, dtypes: Iterable[str]) -> None:
    """The options that the benchmarks of the op and of the backbones share."""
    parser.add_argument('--dtype', choices=dtypes, default='float32')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument('--seconds', type=float, default=1.0, help='time spent on each call')
    parser.add_argument('--json', metavar='FILE', help='also write all results to this file')


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot be right before anything is timed."""
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads must be at least 1, got {args.threads}')
    if not 0 <= args.seconds < float('inf'):
        parser.error(f'--seconds must be a finite number, 0 or more, got {args.seconds}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device cuda: torch {torch.__version__} sees no GPU')
    if args.json:
        try:
            open(args.json, 'a', encoding='utf-8').close()  # now, not after minutes of timing
        except OSError as error:
            parser.error(f'--json: {error}')


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Set the number of threads; print and return what the times belong to."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result: dict[str, Any] = dict(machine=machine(args.device))
    print(', '.join(f'{key}: {value}' for key, value in result['machine'].items() if value))
    return result


def write_json(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=1)

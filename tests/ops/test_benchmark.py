import json
import platform
import subprocess
import sys
import time
import types
import warnings

import pytest
import torch

from ops_dcnv3 import backends, dcnv3
from ops_dcnv3.benchmark import measure, op, scaling
from ops_dcnv3.benchmark.__main__ import main


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    """Triton's interpreter is of no interest to a benchmark."""
    for_gpus = backends.BACKENDS['triton']._replace(devices=('cuda',))
    monkeypatch.setitem(backends.BACKENDS, 'triton', for_gpus)


SMALL = (1, 6, 7, 2, 8)


@pytest.mark.parametrize('dtype', op.TOLERANCES)
def test_times_every_backend(tmp_path, dtype):
    out = tmp_path / 'out.json'
    shapes = ['--shapes', '1,6,7,2,8', '2,5,5,1,16', '1,6,7,2,8']
    main([*shapes, '--seconds', '0', '--dtype', dtype, '--json', str(out)])
    result = json.loads(out.read_text())
    assert result['machine']['torch'] == torch.__version__
    assert result['machine']['threads'] == torch.get_num_threads()
    assert result['copy_gb_per_s'] > 0 and result['dtype'] == dtype
    assert [row['op'] for row in result['rows']] == ['cpu', 'reference'] * 2
    for row in result['rows']:
        assert 0 <= row['error'] < op.TOLERANCES[dtype] and row['load_bound_ms'] > 0
        for key in op.PASSES:
            assert row[key]['ms'] > 0 and row[key]['of_copy_floor'] > 0
        # input, offset, mask and output; and these three and their gradients, and the output's
        size = getattr(torch, dtype).itemsize
        pixels, channels, points = {1: (42, 16, 18), 2: (50, 16, 9)}[row['shape'][0]]
        moved = pixels * size * (2 * channels + 3 * points)
        assert row['forward']['gb_per_s'] * row['forward']['ms'] * 1e6 == pytest.approx(moved)
        moved += pixels * size * (3 * channels + 6 * points)
        both = row['forward_backward']
        assert both['gb_per_s'] * both['ms'] * 1e6 == pytest.approx(moved)
    first, second = result['rows'][:2]
    assert first['forward']['ratio'] == second['forward']['ms'] / first['forward']['ms']
    assert [(mean['op'], mean['over']) for mean in result['means']] == [('cpu', 'reference')]


def test_refuses_to_time_wrong_results(monkeypatch):
    slow = backends.BACKENDS['reference']

    def wrong(*args):
        return slow.call(*args) * 1.01

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=wrong))
    with pytest.raises(RuntimeError, match=r"'cpu', \(1, 6, 7, 2, 8\): wrong.*not timed"):
        op.run([SMALL], 'float32', 'cpu', 0)


class Scale(torch.autograd.Function):
    """The identity, but the gradient is multiplied."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize('factor', [1.01, float('nan')])
def test_refuses_one_wrong_gradient(monkeypatch, which, factor):
    slow = backends.BACKENDS['reference']

    def wrong(*args):
        tensors = list(args)
        tensors[which] = Scale.apply(tensors[which], factor)
        return slow.call(*tensors)

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=wrong))
    error = 'nan' if factor != 1.01 else r'\d\.\de-0\d'
    with pytest.raises(RuntimeError, match=f"'cpu', .*: wrong: error {error}, .*not timed"):
        op.run([SMALL], 'float32', 'cpu', 0)


def theirs(
    input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
    dilation_w, group, group_channels, offset_scale, remove_center,
):  # fmt: skip
    """The signature of the official PyTorch function."""
    window = kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
    assert group_channels == input.shape[-1] // group
    options = (window, group, offset_scale, remove_center, False)
    return backends.BACKENDS['reference'].call(input, offset, mask, *options)


class Theirs(torch.autograd.Function):
    """The signature of the official autograd function, with wrong gradients."""

    @staticmethod
    def forward(
        ctx, input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
        dilation_h, dilation_w, group, group_channels, offset_scale, im2col_step,
    ):  # fmt: skip
        assert im2col_step == 256
        ctx.save_for_backward(input, offset, mask)
        return theirs(
            input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
            dilation_h, dilation_w, group, group_channels, offset_scale, False,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, grad):
        return *(torch.ones_like(tensor) for tensor in ctx.saved_tensors), *[None] * 12


@pytest.mark.parametrize('logits', [False, True])
def test_against(logits):
    specs = [f'{__name__}:theirs', f'{__name__}:Theirs']
    result = op.run([SMALL], 'float32', 'cpu', 0, logits, specs)
    _, _, right, wrong = result['rows']
    assert right['op'] == specs[0] and right['error'] < 1e-5 and right['forward']['ms'] > 0
    assert wrong['failure'].startswith('wrong: error') and 'forward' not in wrong
    assert ('cpu', specs[0]) in [(mean['op'], mean['over']) for mean in result['means']]
    op.report(result)


def fails(input, offset, mask):
    raise AssertionError


def test_against_one_that_fails_without_a_message():
    row = op.run([SMALL], 'float32', 'cpu', 0, against=[f'{__name__}:fails'])['rows'][-1]
    assert row['failure'] == 'AssertionError()' and 'forward' not in row


class Changes(torch.autograd.Function):
    """Right, but multiplies one of its arguments by 2 when it is done with it."""

    which = 0

    @staticmethod
    def forward(ctx, input, offset, mask, group):
        with torch.enable_grad():
            leaves = [tensor.detach().clone().requires_grad_() for tensor in (input, offset, mask)]
            output = dcnv3(*leaves, groups=group, backend='reference')
        ctx.results = leaves, output
        if Changes.which < 3:
            (input, offset, mask)[Changes.which].detach().mul_(2)
        return output.detach()

    @staticmethod
    def backward(ctx, grad):
        leaves, output = ctx.results
        gradients = torch.autograd.grad(output, leaves, grad)
        if Changes.which == 3:
            grad.mul_(2)
        return *gradients, None


@pytest.mark.parametrize(
    ('which', 'name'),
    [(0, 'input'), (1, 'offset'), (2, 'mask'), (3, "the output's gradient")],
)
def test_against_one_that_changes_its_arguments(monkeypatch, which, name):
    """It is refused, and what is checked and timed after it has the arguments of old."""
    monkeypatch.setattr(Changes, 'which', which)
    seen = []
    tensors, grad = op.make_inputs(SMALL, torch.float32, 'cpu')
    monkeypatch.setattr(op, 'make_inputs', lambda *_: (tensors, grad))
    before = [tensor.detach().clone() for tensor in (*tensors, grad)]
    calls = op.make_calls

    def make_calls(*arguments):
        seen.append([tensor.detach().clone() for tensor in (*arguments[1], arguments[2])])
        return calls(*arguments)

    monkeypatch.setattr(op, 'make_calls', make_calls)
    specs = [f'{__name__}:Changes', f'{__name__}:theirs']
    *_, changes, right = op.run([SMALL], 'float32', 'cpu', 0, against=specs)['rows']
    assert changes['failure'] == f'it changes {name} in place; it is not timed'
    assert 'forward' not in changes and right['error'] < 1e-5
    for tensors_of_op in (*seen, (*tensors, grad)):
        assert all(map(torch.equal, tensors_of_op, before))


def without_grad(input, offset, mask, group):
    with torch.no_grad():
        return dcnv3(input, offset, mask, groups=group, backend='reference')


def forward_alone(input, offset, mask, group):
    if input.requires_grad:
        raise NotImplementedError('no gradients\nat all')
    return without_grad(input, offset, mask, group)


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, group):
        return without_grad(input, offset, mask, group)

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError('for inference')


def wrong_without_grad(input, offset, mask, group):
    return without_grad(input, offset, mask, group) * 1.01


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('without_grad', 'its output does not require gradients'),
        ('forward_alone', 'no gradients'),
        ('NoBackward', 'for inference'),
    ],
)
def test_against_one_without_a_backward(tmp_path, name, reason):
    out, spec = tmp_path / 'out.json', f'{__name__}:{name}'
    command = ['--shapes', '1,6,7,2,8', '--seconds', '0', '--json', str(out), '--against', spec]
    main(command)
    result = json.loads(out.read_text())
    row, (cpu, mean, _) = result['rows'][-1], result['means']
    assert row['error'] < 1e-5 and row['forward']['ms'] > 0 and 'failure' not in row
    assert row['forward_backward'] is None and row['no_backward'] == reason
    assert cpu['over'] == 'reference' and cpu['forward_backward']['mean'] > 0
    assert mean['over'] == spec and mean['forward_backward'] is None
    forward = result['rows'][0]['forward']['ms']
    assert mean['forward']['mean'] == pytest.approx(row['forward']['ms'] / forward)


def test_against_a_wrong_one_without_a_backward():
    spec = f'{__name__}:wrong_without_grad'
    row = op.run([SMALL], 'float32', 'cpu', 0, against=[spec])['rows'][-1]
    assert row['failure'].startswith('wrong: error') and 'forward' not in row


def test_a_backend_without_a_backward_is_an_error(monkeypatch):
    slow = backends.BACKENDS['reference']

    def detached(*args):
        return slow.call(*args).detach()

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=detached))
    with pytest.raises(RuntimeError, match=r"'cpu', .*: its output does not require gradients"):
        op.run([SMALL], 'float32', 'cpu', 0)


@pytest.mark.parametrize('logits', [False, True])
def test_against_dcnv4(monkeypatch, logits):
    """The adapter, on a stand-in for DCNv4's extension, which takes offsets and mask joined."""
    calls = []

    def split(joined, arguments):
        kernel, stride, pad, dilation = (arguments[i : i + 2] for i in (0, 2, 4, 6))
        group, channels, scale, _ = arguments[8:]
        assert (kernel, scale) == ((3, 3), 1.0) and joined.shape[-1] % 8 == 0
        by_group = joined[..., : group * 27].unflatten(-1, (group, 27))
        offset, mask = (part.flatten(3) for part in by_group.split((18, 9), -1))
        options = dict(kernel_size=kernel, stride=stride, padding=pad, dilation=dilation)
        return offset, mask, dict(options, groups=group, backend='reference')

    def forward(input, joined, *arguments):
        *arguments, remove_center, d_stride, threads, softmax = arguments
        assert (remove_center, d_stride, threads) == (False, 8, 64)
        calls.append(joined)
        offset, mask, options = split(joined, tuple(arguments))
        return dcnv3(input, offset, mask, mask_is_logits=softmax, **options)

    def backward(input, joined, *arguments):
        *arguments, grad, remove_center, d_stride, threads, softmax = arguments
        assert (remove_center, d_stride, threads) == (False, 1, 32)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (input, joined)]
            output = forward(*leaves, *arguments, False, 8, 64, softmax)
        return torch.autograd.grad(output, leaves, grad)

    package = types.ModuleType('DCNv4')
    package.ext = types.SimpleNamespace(dcnv4_forward=forward, dcnv4_backward=backward)
    functions = types.ModuleType('DCNv4.functions.dcnv4_func')
    functions.findspec = lambda *size: (8, 64)
    functions.find_spec_bwd = lambda *size: (1, 32)
    monkeypatch.setitem(sys.modules, 'DCNv4', package)
    monkeypatch.setitem(sys.modules, 'DCNv4.functions', types.ModuleType('DCNv4.functions'))
    monkeypatch.setitem(sys.modules, 'DCNv4.functions.dcnv4_func', functions)
    row = op.run([(1, 6, 7, 3, 8)], 'float32', 'cpu', 0, logits, ['against:dcnv4'])['rows'][-1]
    assert row['op'] == 'against:dcnv4' and row['error'] < 1e-5, row
    assert len({joined.data_ptr() for joined in calls}) == 1  # joined once


def test_against_what_is_not_there():
    with pytest.raises(ValueError, match='--against nothing:here: No module named'):
        op.third_party_op('nothing:here')
    with pytest.raises(ValueError, match='unknown parameters remove_centre'):
        op.third_party_op(f'{__name__}:misspelt')


def misspelt(input, offset, mask, group, remove_centre): ...


PEAKS = """
import json, sys, torch
from ops_dcnv3.benchmark import measure, op
torch.set_num_threads(2)
dtype, logits = getattr(torch, sys.argv[1]), sys.argv[2] == 'True'
tensors, grad = op.make_inputs((1, 100, 160, 8, 16), dtype, 'cpu', logits)
row = {}
calls = op.make_calls(op.backend_op('cpu'), tensors, grad, 8, logits)
measure.measure_calls([(row, calls)], 'cpu', 0)
print(json.dumps(row))
"""


# In a process of its own: what other tests leave behind in the allocator changes the resident set.
@pytest.mark.parametrize('logits', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_memory_of_the_op(dtype, logits):
    """Forward: its output and nothing of that order; backward: its three gradients."""
    command = [sys.executable, '-c', PEAKS, dtype, str(logits)]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if row['forward']['peak_mib'] is None:
        pytest.skip('the kernel does not count peak memory')
    size = getattr(torch, dtype).itemsize * 16000 / 2**20
    output, gradients = 128 * size, (128 + 8 * 27) * size
    # Pages, and what each thread knows of a tile of points.
    slack = 0.25 + 0.25 * 2  # threads
    assert output * 0.95 < row['forward']['peak_mib'] < output + slack
    # The input gradient of halves is summed in float32.
    gradients += 128 * size * 2 if dtype == 'bfloat16' else 0
    assert gradients < row['forward_backward']['peak_mib'] < output + gradients + slack


def test_load_bound():
    """It takes less than any forward, and longer than a processor without its loads."""
    tensors, _ = op.make_inputs((1, 50, 80, 16, 16), torch.float32, 'cpu')

    def smallest(call):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    bound = smallest(lambda: torch.ops.ops_dcnv3.load_bound(tensors[0], 16))
    with torch.no_grad():
        forward = smallest(lambda: dcnv3(*tensors, groups=16, backend='cpu'))
    loads = 50 * 80 * 16 * 36 / torch.get_num_threads()
    assert loads / 2 / 8e9 < bound < forward  # two a cycle, 8 GHz
    with pytest.raises(ValueError, match='a number of groups that divides C expected'):
        torch.ops.ops_dcnv3.load_bound(tensors[0], 7)


FAULTS = """
import resource, torch
from ops_dcnv3.benchmark import measure
with measure.freed_memory_kept():
    for _ in range(16):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept():
    """A tensor of 64 MiB takes the pages of those before it, of which it has 16384.

    Of the first eight or so each may get a new place, until glibc has joined the small pieces that
    it cuts off for alignment.
    """
    pytest.importorskip('resource', reason='only Unix counts page faults')
    if platform.libc_ver()[0] != 'glibc':
        pytest.skip('of glibc only')
    # In a process of its own, too: a heap with holes may have another place for the second.
    command = [sys.executable, '-c', FAULTS]
    faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(faults) < 1000


def test_peak_is_none_where_the_kernel_does_not_count_it(monkeypatch):
    present = measure._resident_bytes
    assert present('VmNothing') is None
    monkeypatch.setattr(
        measure, '_resident_bytes', lambda field: None if field == 'VmHWM' else present(field)
    )
    assert measure.peak_bytes(lambda: None, 'cpu') is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--shapes 1,2,3', 'N,H,W,groups,channels per group expected, all positive integers'),
        ('--scaling --shapes 1,6,7,2,8', 'have no meaning with --scaling'),
        ('--against nothing:here', '--against nothing:here: No module named'),
        ('--threads 0', '--threads must be at least 1, got 0'),
        ('--seconds nan', '--seconds must be a finite number, 0 or more, got nan'),
        ('--json no/such/folder/rows.json', '--json: [Errno 2]'),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert message in capsys.readouterr().err


def test_scaling():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        rows = scaling.run('float32', 'cpu', 0, False, sides=(64, 128), batches=(1, 4))
    finally:
        torch.set_num_threads(before)
    cases = [(row['side'], row['batch'], row['threads']) for row in rows]
    images = [(4, 1), (64, 1), (64, 4), (128, 1), (128, 4)]  # the first for the call itself
    assert cases == [(*image, t) for image in images for t in (1, 2)]
    for single, double in zip(rows[::2], rows[1::2], strict=True):
        assert single['forward']['speed_up'] == 1
        assert double['forward']['speed_up'] == single['forward']['ms'] / double['forward']['ms']
    pixels = 4 * 32 * 32
    assert rows[-1]['forward']['ns_per_pixel'] * pixels == pytest.approx(
        rows[-1]['forward']['ms'] * 1e6
    )
    for row in rows:
        call, own = (r['forward_backward']['ms'] for r in (rows[row['threads'] - 1], row))
        net = row['forward_backward']['net_ns_per_pixel'] * row['batch'] * (row['side'] // 4) ** 2
        assert net == pytest.approx((own - call) * 1e6, abs=1e-3)
    scaling.report(rows)


def test_scaling_leaves_out_what_does_not_fit(monkeypatch):
    """The largest case, where its tensors and the results of a call do not; smaller ones stay."""
    sides, batches = (64, 128), (1, 4)
    pixels = 256 * (1 + 4 + 4 + 16) + 256 * 16  # inputs of all, and the results of the largest
    needed = scaling.CHECK_BYTES + pixels * 236 * 4
    monkeypatch.setattr(measure, 'available_bytes', lambda device: needed / 0.7 + 100)
    times = dict(dtype='float32', device='cpu', seconds=0, logits=False)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'left out')
        rows = scaling.run(**times, sides=sides, batches=batches)
    assert len({(row['side'], row['batch']) for row in rows}) == 5
    monkeypatch.setattr(measure, 'available_bytes', lambda device: needed / 0.7 - 100)
    with pytest.warns(UserWarning, match='left out for want of memory: image 128, batch 4'):
        rows = scaling.run(**times, sides=sides, batches=batches)
    cases = {(row['side'], row['batch']) for row in rows}
    assert cases == {(4, 1), (64, 1), (64, 4), (128, 1)}


@pytest.mark.parametrize('wrong', [None, (0, 0), (0, 31), (1, 18), (2, 0), (2, 31)])
@pytest.mark.parametrize('result', [0, 1])
@pytest.mark.parametrize('pixels', [3 * 32 * 32, 32 * 32, 24 * 32])
def test_scaling_checks_parts_of_large_cases(monkeypatch, pixels, result, wrong):
    """All of three images, or each of them, or rows at the top, in the middle and at the bottom.

    Right results pass wherever the image was cut.
    """
    monkeypatch.setattr(scaling, 'MAX_CHECKED_PIXELS', pixels)
    tensors, grad = op.make_inputs((3, 32, 32, 4, 16), torch.float32, 'cpu')
    forward_backward = op.forward_backward
    call = op.backend_op('cpu')

    def spoiled(call_, *arguments):
        results = forward_backward(call_, *arguments)
        if call_ is call and wrong:
            results[result].detach()[wrong] *= 1.01
        return results

    monkeypatch.setattr(op, 'forward_backward', spoiled)
    if wrong in (None, *([(0, 31), (2, 0)] if pixels < 32 * 32 else [])):
        scaling.check(call, tensors, grad, False, 'float32')
    else:
        with pytest.raises(RuntimeError, match='wrong: error'):
            scaling.check(call, tensors, grad, False, 'float32')

"""The benchmark times nothing wrong, and its ratios are what their names say."""

import json
import subprocess
import sys
import time

import pytest
import torch

from ops_dcnv3 import backends, dcnv3
from ops_dcnv3.benchmark import measure, op, scaling
from ops_dcnv3.benchmark.__main__ import main

pytestmark = pytest.mark.usefixtures('quick_benchmark')
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


class Scale(torch.autograd.Function):
    """The identity, but the gradient is multiplied."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.parametrize(
    ('which', 'factor', 'error'),
    [
        *((which, 1.01, r'wrong: error \d\.\de-0\d, .*not timed') for which in ('output', 0, 1, 2)),
        *((which, float('nan'), 'wrong: error nan, .*not timed') for which in ('output', 0, 1, 2)),
        ('backward', 1, 'its output does not require gradients'),
    ],
)
def test_refuses_to_time_wrong_results(monkeypatch, which, factor, error):
    """The output, or the gradient of one argument; a backward that is not there."""
    right = backends.BACKENDS['reference']

    def wrong(*args):
        if which == 'output':
            return right.call(*args) * factor
        if which == 'backward':
            return right.call(*args).detach()
        tensors = list(args)
        tensors[which] = Scale.apply(tensors[which], factor)
        return right.call(*tensors)

    monkeypatch.setitem(backends.BACKENDS, 'cpu', right._replace(call=wrong))
    with pytest.raises(RuntimeError, match=rf"'cpu', \(1, 6, .*: {error}"):
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
    """An autograd function, with wrong gradients; the official one has a step as well."""

    @staticmethod
    def forward(ctx, input, offset, mask, group, im2col_step):
        assert im2col_step == 256
        ctx.save_for_backward(input, offset, mask)
        return without_grad(input, offset, mask, group)

    @staticmethod
    def backward(ctx, grad):
        return *(torch.ones_like(tensor) for tensor in ctx.saved_tensors), None, None


class Changes(torch.autograd.Function):
    """Right, but doubles its input in the forward or its gradient in the backward."""

    @staticmethod
    def forward(ctx, input, offset, mask, group):
        with torch.enable_grad():
            leaves = [tensor.detach().clone().requires_grad_() for tensor in (input, offset, mask)]
            ctx.results = leaves, dcnv3(*leaves, groups=group, backend='reference')
        input.detach().mul_(2)
        return ctx.results[1].detach()

    @staticmethod
    def backward(ctx, grad):
        leaves, output = ctx.results
        gradients = torch.autograd.grad(output, leaves, grad)
        grad.mul_(2)
        return *gradients, None


def without_grad(input, offset, mask, group):
    with torch.no_grad():
        return dcnv3(input, offset, mask, groups=group, backend='reference')


def forward_alone(input, offset, mask, group):
    if input.requires_grad:
        raise NotImplementedError('no gradients\nat all')
    return without_grad(input, offset, mask, group)


def wrong_without_grad(input, offset, mask, group):
    return without_grad(input, offset, mask, group) * 1.01


def fails(input, offset, mask):
    raise AssertionError


def misspelt(input, offset, mask, group, remove_centre): ...


def against(*names, **options):
    """Result and rows of the third-party ops above."""
    specs = [f'{__name__}:{name}' for name in names]
    result = op.run([SMALL], 'float32', 'cpu', 0, against=specs, **options)
    op.report(result)
    assert [row['op'] for row in result['rows']] == ['cpu', 'reference', *specs]
    return result, *result['rows'][2:]


@pytest.mark.parametrize('logits', [False, True])
def test_against(logits):
    """The ops that fail have a row that says why, and those after them have right arguments."""
    failing = {
        'Theirs': 'wrong: error',
        'Changes': "it changes input, the output's gradient in place; it is not timed",
        'wrong_without_grad': 'wrong: error',
        'fails': 'AssertionError()',
    }
    result, *rows, right = against(*failing, 'theirs', logits=logits)
    for row, reason in zip(rows, failing.values(), strict=True):
        assert row['failure'].startswith(reason) and 'forward' not in row
    assert right['error'] < 1e-5 and right['forward']['ms'] > 0 and 'failure' not in right
    assert ('cpu', right['op']) in [(mean['op'], mean['over']) for mean in result['means']]


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('without_grad', 'its output does not require gradients'),
        ('forward_alone', 'no gradients'),
    ],
)
def test_against_one_without_a_backward(name, reason):
    result, row = against(name)
    cpu, mean, _ = result['means']
    assert row['error'] < 1e-5 and row['forward']['ms'] > 0 and 'failure' not in row
    assert row['forward_backward'] is None and row['no_backward'] == reason
    assert cpu['over'] == 'reference' and cpu['forward_backward']['mean'] > 0
    assert mean['over'] == row['op'] and mean['forward_backward'] is None
    forward = result['rows'][0]['forward']['ms']
    assert mean['forward']['mean'] == pytest.approx(row['forward']['ms'] / forward)


PEAKS = """
import json, sys, torch
from ops_dcnv3.benchmark import measure, op
torch.set_num_threads(2)
dtype, logits = getattr(torch, sys.argv[1]), sys.argv[2] == 'True'
tensors, grad = op.make_inputs((1, 100, 160, 8, 16), dtype, 'cpu', logits)
row = {}
calls = op.make_calls(op.backend_op('cpu'), tensors, grad, 8, logits)
measure.measure_calls([(row, calls)], 'cpu', 0, in_turn=True)
print(json.dumps(row))
"""


# In a process of its own: what other tests leave behind in the allocator changes the resident set.
@pytest.mark.parametrize(('dtype', 'logits'), [('float32', False), ('bfloat16', True)])
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


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--shapes 1,2,3', 'N,H,W,groups,channels per group expected, all positive integers'),
        ('--scaling --shapes 1,6,7,2,8', 'have no meaning with --scaling'),
        ('--against nothing:here', '--against nothing:here: No module named'),
        (f'--against {__name__}:misspelt', 'unknown parameters remove_centre'),
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
    pixels = 256 * (1 + 4 + 4 + 16) + 256 * 16  # inputs of all, and the results of the largest
    needed = scaling.CHECK_BYTES + pixels * 236 * 4
    monkeypatch.setattr(measure, 'available_bytes', lambda device: needed / 0.7 - 100)
    with pytest.warns(UserWarning, match='left out for want of memory: image 128, batch 4'):
        rows = scaling.run('float32', 'cpu', 0, False, sides=(64, 128), batches=(1, 4))
    cases = {(row['side'], row['batch']) for row in rows}
    assert cases == {(4, 1), (64, 1), (64, 4), (128, 1)}


@pytest.mark.parametrize('wrong', [None, (0, 0), (0, 31), (1, 18), (2, 0), (2, 31)])
@pytest.mark.parametrize(('pixels', 'result'), [(3 * 32 * 32, 0), (32 * 32, 1), (24 * 32, 0)])
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

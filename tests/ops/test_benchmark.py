import json
import time
from pathlib import Path

import pytest
import torch

from ops_dcnv3 import backends, benchmark, measure


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    """Triton's interpreter is of no interest to a benchmark."""
    monkeypatch.setattr(backends, '_TRITON_INTERPRETS', False)


SMALL = (1, 6, 7, 2, 8)


@pytest.mark.parametrize('dtype', benchmark.TOLERANCES)
def test_times_every_backend(tmp_path, capsys, dtype):
    out = tmp_path / 'out.json'
    arguments = ['--shapes', '1,6,7,2,8', '2,5,5,1,16', '--seconds', '0', '--dtype', dtype]
    benchmark.main([*arguments, '--json', str(out)])
    result = json.loads(out.read_text())
    assert result['machine']['torch'] == torch.__version__
    assert result['machine']['threads'] == torch.get_num_threads()
    assert result['copy_gb_per_s'] > 0 and result['dtype'] == dtype
    assert [row['op'] for row in result['rows']] == ['cpu', 'reference'] * 2
    for row in result['rows']:
        assert 0 <= row['error'] < benchmark.TOLERANCES[dtype] and row['load_bound_ms'] > 0
        for key in benchmark.PASSES:
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
    text = capsys.readouterr().out
    assert 'cpu over reference, 2 shapes' in text and torch.__version__ in text
    assert f'{first["forward"]["ms"]:.3f}' in text


def test_refuses_to_time_wrong_results(monkeypatch):
    slow = backends.BACKENDS['reference']

    def wrong(*args):
        return slow.call(*args) * 1.01

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=wrong))
    with pytest.raises(RuntimeError, match=r"'cpu', \(1, 6, 7, 2, 8\): wrong.*not timed"):
        benchmark.run([SMALL], 'float32', 'cpu', 0)


def theirs(
    input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
    dilation_w, group, group_channels, offset_scale, remove_center,
):  # fmt: skip
    """The signature of the official PyTorch function."""
    geometry = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    assert group_channels == input.shape[-1] // group
    options = (*geometry, group, offset_scale, remove_center, False)
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
    result = benchmark.run([SMALL], 'float32', 'cpu', 0, logits, specs)
    _, _, right, wrong = result['rows']
    assert right['op'] == specs[0] and right['error'] < 1e-5 and right['forward']['ms'] > 0
    assert wrong['failure'].startswith('wrong: error') and 'forward' not in wrong
    assert ('cpu', specs[0]) in [(mean['op'], mean['over']) for mean in result['means']]
    benchmark.report(result)


def test_against_what_is_not_there():
    with pytest.raises(ValueError, match='--against nothing:here: No module named'):
        benchmark.third_party_op('nothing:here')
    with pytest.raises(ValueError, match='unknown parameters remove_centre'):
        benchmark.third_party_op(f'{__name__}:misspelt')


def misspelt(input, offset, mask, group, remove_centre): ...


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux counts peak memory')
@pytest.mark.parametrize('logits', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_memory_of_the_op(dtype, logits):
    """Forward: its output and nothing of that order; backward: its three gradients."""
    shape = (1, 100, 160, 8, 16)
    tensors, grad = benchmark.make_inputs(shape, getattr(torch, dtype), 'cpu', logits)
    row: dict = {}
    calls = benchmark.make_calls(benchmark.backend_op('cpu'), tensors, grad, 8, logits)
    measure.measure_calls([(row, calls)], 'cpu', 0)
    size = getattr(torch, dtype).itemsize * 16000 / 2**20
    output, gradients = 128 * size, (128 + 8 * 27) * size
    # 0.5 MiB: pages, and what one thread knows of a tile of points.
    assert output * 0.95 < row['forward']['peak_mib'] < output + 0.5
    # The input gradient of halves is summed in float32.
    gradients += 128 * size * 2 if dtype == 'bfloat16' else 0
    assert gradients < row['forward_backward']['peak_mib'] < output + gradients + 0.5


def test_load_bound():
    """It takes less than any forward, and longer than a processor without its loads."""
    tensors, _ = benchmark.make_inputs((1, 50, 80, 16, 16), torch.float32, 'cpu')

    def smallest(call):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    bound = smallest(lambda: torch.ops.ops_dcnv3.load_bound(tensors[0], 16))
    with torch.no_grad():
        forward = smallest(lambda: benchmark.dcnv3(*tensors, groups=16, backend='cpu'))
    loads = 50 * 80 * 16 * 36 / torch.get_num_threads()
    assert loads / 2 / 8e9 < bound < forward  # two a cycle, 8 GHz
    with pytest.raises(ValueError, match='a number of groups that divides C expected'):
        torch.ops.ops_dcnv3.load_bound(tensors[0], 7)


def test_bad_shape(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['--shapes', '1,2,3'])
    assert 'N,H,W,groups,channels per group, got 1,2,3' in capsys.readouterr().err

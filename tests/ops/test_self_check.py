"""The comparison with the reference backend before a GPU's kernels are used, on stand-ins."""

import threading
import warnings

import pytest
import torch
from op_cases import device_of

from ops_dcnv3 import available_backends, backends, dcnv3, explain_backend
from ops_dcnv3.geometry import DTYPES
from ops_dcnv3.reference import dcnv3_reference
from ops_dcnv3.self_check import find_fault


@pytest.fixture
def replace(monkeypatch):
    """Put another call in the place of the CPU kernels, as one that checks itself."""
    monkeypatch.setattr(backends, '_checked', set())
    monkeypatch.setattr(backends, '_faults', {})
    for name in ('cuda', 'triton'):
        monkeypatch.setitem(
            backends.BACKENDS, name, backends.BACKENDS[name]._replace(automatic=False)
        )

    def replace(call, **fields):
        stand_in = backends.BACKENDS['cpu']._replace(call=call, self_check=True, obstacle=None)
        monkeypatch.setitem(backends.BACKENDS, 'cpu', stand_in._replace(**fields))

    return replace


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, factor):
        ctx.factor = factor
        return output.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def raises(*args):
    raise RuntimeError('no kernel image is available for execution on the device')


def wrong_in_bfloat16(input, *args):
    output = dcnv3_reference(input, *args)
    return output * 1.1 if input.dtype == torch.bfloat16 else output


def nan_at_the_end(*args):
    output = dcnv3_reference(*args).clone()
    output[-1, -1, -1, -1] = torch.nan
    return output


@pytest.mark.parametrize(
    ('call', 'dtype', 'reason'),
    [
        (lambda *args: dcnv3_reference(*args) * 1.001, torch.float32, 'the output .* by 1.0e-03'),
        (nan_at_the_end, torch.float32, 'the output .* by nan'),
        (
            lambda *args: WrongGradient.apply(dcnv3_reference(*args), 1.01),
            torch.float64,
            'float32 the gradient of input .* by 1.0e-02',
        ),
        (wrong_in_bfloat16, torch.bfloat16, 'bfloat16 the output'),
        (raises, torch.float32, 'raised RuntimeError: no kernel image'),
    ],
    ids=['output', 'nan', 'gradient', 'bfloat16', 'error'],
)
def test_wrong_backend_is_not_used(replace, call, dtype, reason):
    replace(call)
    x, offset, mask, settings = inputs(dtype)
    with pytest.warns(RuntimeWarning, match=f"does not use backend 'cpu' on cpu.*{reason}"):
        output = dcnv3(x, offset, mask, **settings)
    expected = dcnv3(x, offset, mask, backend='reference', **settings)
    assert torch.equal(output, expected)
    assert not available_backends()['cpu'][0]
    assert 'self-check' in explain_backend()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dcnv3(x, offset, mask, **settings)  # warned once
    with pytest.raises(RuntimeError, match=f"backend 'cpu' .* cannot run on cpu.*{reason}"):
        dcnv3(x, offset, mask, backend='cpu', **settings)


def test_right_backend_is_checked_once_for_each_dtype(replace):
    threads = []

    def call(*args):
        threads.append(threading.get_ident())
        return dcnv3_reference(*args)

    replace(call)
    for dtype, checks in ((torch.float32, 2), (torch.float32, 0), (torch.bfloat16, 4)):
        x, offset, mask, settings = inputs(dtype)
        threads.clear()
        with torch.inference_mode(), torch.autocast('cpu'):
            dcnv3(x, offset, mask, **settings)
        assert len(threads) == checks + 1
        assert threads.count(threading.get_ident()) == 1


def test_forward_alone_where_the_backward_is_not_deterministic(replace):
    replace(lambda *args: WrongGradient.apply(dcnv3_reference(*args), 2), deterministic=False)
    x, offset, mask, settings = inputs(torch.float32)
    dcnv3(x, offset, mask, **settings)  # conftest has set deterministic algorithms
    torch.use_deterministic_algorithms(False)
    with pytest.warns(RuntimeWarning, match='gradient of input'):
        dcnv3(x, offset, mask, **settings)


def test_no_check_under_a_compiler_or_when_switched_off(replace, monkeypatch):
    replace(lambda *args: dcnv3_reference(*args) * 2)
    x, offset, mask, settings = inputs(torch.float32)
    expected = 2 * dcnv3(x, offset, mask, backend='reference', **settings)
    compiled = torch.compile(lambda x: dcnv3(x, offset, mask, **settings), backend='eager')
    assert torch.equal(compiled(x), expected)
    monkeypatch.setattr(backends, '_SELF_CHECK', False)
    assert torch.equal(dcnv3(x, offset, mask, **settings), expected)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', ['cpu', 'triton'])
def test_our_kernels_pass(name, dtype):
    call = backends.BACKENDS[name].call
    assert find_fault(call, device_of(name), dtype, backward=True) is None


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    x, offset, mask = (
        torch.rand(1, 4, 5, channels, generator=generator).to(dtype) for channels in (8, 36, 18)
    )
    return x, offset, mask, {'groups': 2}

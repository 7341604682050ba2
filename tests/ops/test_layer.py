"""The layer DCNv3: its arguments, and how its linear layers run as convolutions on a CPU."""

import contextlib
import functools
import importlib
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3 import DCNv3, explain_fast_cpu, fast_cpu, set_fast_cpu, use_fast_cpu


class Recorder(TorchDispatchMode):
    """How many convolutions run."""

    def __init__(self):
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.convolutions += function.overloadpacket is torch.ops.aten.convolution
        return function(*args, **(kwargs or {}))


def make(**settings):
    """A layer whose offsets and masks are not zero, and its input."""
    generator = torch.Generator().manual_seed(0)
    layer = DCNv3(**{'channels': 16, 'group': 2, **settings})
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return layer, torch.randn(1, 5, 6, 16, generator=generator)


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(kernel_size=5, dilation=2),
        dict(kernel_size=(3, 5)),
        dict(kernel_size=(1, 3), dilation=(3, 2), stride=(2, 3)),
        dict(kernel_size=(3, 2), dilation=(1, 2), dw_kernel_size=(1, 5), stride=2),
        dict(remove_center=True),
    ],
    ids=str,
)
def test_starts_as_the_mean_over_the_grid(settings):
    """For sizes as pairs, each with the padding that keeps the size; all parameters are trained."""
    layer = DCNv3(channels=8, groups=2, **settings)
    kernel, dilation, stride = (
        value if isinstance(value, tuple) else (value, value)
        for value in (
            settings.get(k, d) for k, d in dict(kernel_size=3, dilation=1, stride=1).items()
        )
    )
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    assert layer.pad == padding
    x = torch.randn(2, 9, 11, 8, generator=torch.manual_seed(0))
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    weight = torch.ones(8, 1, *kernel)
    if layer.remove_center:
        weight[:, :, 1, 1] = 0
    weight /= weight[0].sum()
    mean = nn.functional.conv2d(value, weight, None, stride, padding, dilation, groups=8)
    output = layer(x)
    torch.testing.assert_close(output, layer.output_proj(mean.permute(0, 2, 3, 1)))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_two_names_for_one_argument():
    for layer in (DCNv3(16, pad=1, group=2), DCNv3(16, padding=1, groups=2)):
        assert (layer.pad, layer.group) == ((1, 1), 2)
    assert DCNv3(16, group=2, groups=2, pad=(1, 1), padding=(1, 1)).group == 2
    assert DCNv3(16).group == 4


@pytest.mark.parametrize(
    ('settings', 'error', 'match'),
    [
        (dict(group=2, groups=4), ValueError, 'group and groups are one argument, got 2 and 4'),
        (dict(pad=1, padding=2), ValueError, 'pad and padding are one argument, got 1 and 2'),
        (
            dict(kernel_size=(3, 5), pad=1),
            ValueError,
            r'pad must be \(1, 2\).* got 1; leave it out',
        ),
        (dict(padding=2), ValueError, r'padding must be \(1, 1\).* got 2; leave it out'),
        (dict(padding='1'), TypeError, 'padding must be an int or'),
        (dict(group=None, groups=3), ValueError, 'groups must divide .*, got groups=3, channels'),
        (
            dict(kernel_size=2, dw_kernel_size=3),
            ValueError,
            'no padding keeps the size .* kernel_size=2',
        ),
        (dict(kernel_size='3'), TypeError, r'kernel_size must be an int or an \(h, w\) pair'),
        (dict(dw_kernel_size=(3, 4)), ValueError, r'dw_kernel_size must be odd, got \(3, 4\)'),
        (dict(remove_center=True, kernel_size=2), ValueError, 'dw_kernel_size must be odd, got 2'),
        (dict(center_feature_scale=True, stride=2), ValueError, 'needs stride 1, got 2'),
        (dict(group=3), ValueError, 'group must divide channels, got group=3, channels=16'),
        (dict(act_layer='Tanh'), ValueError, "GELU, ReLU, SiLU, got 'Tanh'"),
        (dict(norm_layer='GN'), ValueError, "LN, BN, got 'GN'"),
        (
            dict(kernel_size=2, dw_kernel_size=3, remove_center=True),
            ValueError,
            'remove_center needs an odd kernel_size',
        ),
    ],
    ids=str,
)
def test_wrong_arguments(settings, error, match):
    with pytest.raises(error, match=match):
        make(**settings)


@pytest.mark.parametrize(
    ('x', 'error', 'match'),
    [
        (np.zeros((1, 5, 6, 16), 'float32'), TypeError, 'floating-point tensor, got ndarray'),
        (torch.zeros(1, 5, 6, 16, dtype=int), TypeError, 'floating-point tensor, got torch.int64'),
        (torch.zeros(1, 16, 5, 6), ValueError, r'\(N, H, W, 16\), got \(1, 16, 5, 6\)'),
    ],
    ids=['array', 'int', 'channels first'],
)
def test_wrong_input(x, error, match):
    with pytest.raises(error, match=match):
        DCNv3(16)(x)


# ---- layers that were changed -------------------------------------------------------------------


@pytest.mark.parametrize('name', ['offset', 'mask', 'input_proj', 'output_proj'])
@pytest.mark.parametrize(
    'kind', ['forward_pre', 'forward', 'full_backward', 'full_backward_pre', 'patched']
)
def test_hooks_are_called(name, kind):
    layer, x = make()
    part, calls = getattr(layer, name), []

    def hook(*args):
        calls.append(1)

    if kind == 'patched':
        plain = part.forward
        part.forward = lambda x: hook() or plain(x)
    else:
        getattr(part, f'register_{kind}_hook')(hook)
    layer(x.requires_grad_()).square().sum().backward()
    assert calls == [1]


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) + 0.5


@pytest.mark.parametrize('name', ['offset', 'mask', 'input_proj', 'output_proj'])
def test_replaced_layers_are_called(name):
    layer, x = make()
    before = layer(x)
    plain = getattr(layer, name)
    setattr(layer, name, Adapter(plain))
    adapted = layer(x)
    plain.bias.data += 0.5
    setattr(layer, name, plain)
    torch.testing.assert_close(adapted, layer(x))
    if name != 'mask':  # the same number added to all logits changes nothing
        assert not torch.allclose(adapted, before)


def test_parametrized_weights_and_missing_bias():
    layer, x = make()
    nn.utils.parametrize.register_parametrization(layer.offset, 'weight', nn.Tanh())
    expected = layer(x)
    weight = layer.offset.weight.detach()
    nn.utils.parametrize.remove_parametrizations(layer.offset, 'weight', leave_parametrized=False)
    layer.offset.weight.data = weight
    torch.testing.assert_close(layer(x), expected)
    layer.mask.bias.data.zero_()
    expected = layer(x)
    layer.mask.bias = None
    torch.testing.assert_close(layer(x), expected)


@pytest.fixture
def two_threads():
    """PyTorch gives these convolutions to oneDNN on more than one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def convolutions(call, *args):
    """How many convolutions a call runs, and its result."""
    with Recorder() as recorder:
        output = call(*args)
    return recorder.convolutions, output


LARGE = (1, 40, 64, 16)  # pixels enough for a convolution to pay


@pytest.fixture
def fused(monkeypatch):
    """The calls of the operator that computes a GELU with a convolution."""
    calls = []
    run = fast_cpu._convolve_gelu
    monkeypatch.setattr(fast_cpu, '_convolve_gelu', lambda *args: calls.append(1) or run(*args))
    return calls


@pytest.mark.parametrize(
    'shape', [LARGE, (2, 31, 17, 24), (1, 1, 1999, 32), (1200, 1, 1, 8), (1, 50, 30, 1)]
)
@pytest.mark.parametrize('strided', [False, True])
def test_linear_layer_as_a_convolution(shape, strided, two_threads, fused):
    """Alone and with a GELU, which treats infinities and NaN as it does alone."""
    layer, gelu = nn.Linear(shape[-1], 37), nn.GELU()
    x = torch.randn(shape, generator=torch.manual_seed(0))
    if strided:
        x = x.transpose(1, 2)
    wide, bad = 5 * x, x.clone()
    bad[0, 0, 0], bad[-1, -1, -1] = torch.nan, -torch.inf
    with torch.no_grad():
        count, output = convolutions(fast_cpu.linear, layer, x)
        activated, separate = fast_cpu.linear(layer, wide, gelu), gelu(fast_cpu.linear(layer, wide))
        finite = fast_cpu.linear(layer, bad, gelu).isfinite()
        expected = gelu(fast_cpu.linear(layer, bad)).isfinite()
        truth, activated_truth = layer.double()(x.double()), gelu(layer(wide.double()))
    assert count == 1 and len(fused) == 2
    for result in (output, activated):
        assert result.dtype == torch.float32 and (strided or result.is_contiguous())
    torch.testing.assert_close(output.double(), truth, rtol=1e-5, atol=1e-6 * shape[-1])
    assert torch.equal(finite, expected) and not expected.all()
    error, allowed = ((o.double() - activated_truth).abs().max() for o in (activated, separate))
    assert error < 2 * allowed + 1e-7


@pytest.mark.parametrize(
    'why', ['gradients', 'small', 'tanh', 'SiLU', 'hook', 'mode', 'tangent', 'switch']
)
def test_activation_by_itself(why, two_threads, fused):
    layer, x, act, seen = nn.Linear(16, 37), torch.randn(LARGE), nn.GELU(), []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(why == 'gradients'))
        if why == 'small':
            x = x[:, :10]
        elif why == 'tanh':
            act = nn.GELU(approximate='tanh')
        elif why == 'SiLU':
            act = nn.SiLU()
        elif why == 'hook':
            act.register_forward_hook(lambda *_: seen.append(1))
        elif why == 'mode':
            counter = stack.enter_context(FlopCounterMode(display=False))
        elif why == 'switch':
            stack.enter_context(use_fast_cpu(False))
        elif why == 'tangent':
            stack.enter_context(forward_ad.dual_level())
            x = forward_ad.make_dual(x, torch.ones_like(x))
        output = fast_cpu.linear(layer, x, act)
        tangent = forward_ad.unpack_dual(output).tangent if why == 'tangent' else None
    assert not fused and len(seen) == (why == 'hook')
    if why == 'mode':
        assert counter.get_total_flops() == 2 * 16 * 37 * LARGE[1] * LARGE[2]
    if why == 'tangent':
        with torch.enable_grad(), forward_ad.dual_level():
            truth = act(layer(forward_ad.make_dual(x, torch.ones_like(x))))
            truth = forward_ad.unpack_dual(truth).tangent
        torch.testing.assert_close(tangent, truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, act(layer(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'why',
    [
        *('float64', 'autocast', 'small', 'empty', 'thread', 'precision', 'newer precision'),
        *('onednn', 'switch'),
    ],
)
@pytest.mark.parametrize('gradients', [False, True])
def test_linear_layer_as_such(why, gradients, two_threads):
    layer, x = nn.Linear(16, 37), torch.randn(LARGE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        if why == 'float64':
            layer, x = layer.double(), x.double()
        elif why == 'autocast':
            stack.enter_context(torch.autocast('cpu', torch.bfloat16))
        elif why in ('small', 'empty'):
            x = x[:, :10] if why == 'small' else x[:0]
        elif why == 'thread':
            torch.set_num_threads(1)
        elif why == 'precision':
            stack.callback(torch.set_float32_matmul_precision, 'highest')
            torch.set_float32_matmul_precision('medium')
        elif why == 'newer precision':  # PyTorch does not answer in terms of the older one then
            settings = getattr(torch.backends.mkldnn, 'matmul', None)
            if settings is None:
                pytest.skip('this PyTorch has the older setting alone')
            stack.callback(setattr, settings, 'fp32_precision', settings.fp32_precision)
            settings.fp32_precision = 'bf16'
        elif why == 'switch':
            stack.callback(set_fast_cpu, True)
            set_fast_cpu(False)
        elif why == 'onednn':
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        count, output = convolutions(fast_cpu.linear, layer, x)
        assert count == 0
        assert torch.equal(output, layer(x))


def test_odd_weights(two_threads):
    """Sparse ones, on another device, and a bias of another dtype."""
    layer, x = nn.Linear(16, 37), torch.randn(LARGE)
    with torch.no_grad():
        expected = layer(x)
        layer.weight = nn.Parameter(layer.weight.to_sparse_csr())
        torch.testing.assert_close(fast_cpu.linear(layer, x), expected)
        with pytest.raises(RuntimeError):
            fast_cpu.linear(nn.Linear(16, 37, device='meta'), x)
        layer = nn.Linear(16, 37)
        layer.bias = nn.Parameter(layer.bias.double())
        with pytest.raises(RuntimeError, match='dtype|double|Double'):
            fast_cpu.linear(layer, x)


@pytest.mark.parametrize('trained', ['all', 'x', 'weight', 'bias'])
@pytest.mark.parametrize('strided', [False, True])
def test_gradients_of_a_linear_layer_as_a_convolution(trained, strided, two_threads):
    """As close to the truth as those of the layer itself; its bias is what oneDNN sums badly."""
    layer, rng = nn.Linear(16, 37), torch.manual_seed(0)
    x = torch.randn(2, 100, 90, 16, generator=rng)
    x = x.transpose(1, 2) if strided else x
    grad = torch.rand(*x.shape[:3], 37, generator=rng)  # sums that grow
    leaves = dict(x=x, weight=layer.weight, bias=layer.bias)
    for name, leaf in leaves.items():
        leaf.requires_grad_(trained in ('all', name))
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    expected = torch.autograd.grad(layer(x), wanted, grad)
    count, output = convolutions(fast_cpu.linear, layer, x)
    results = torch.autograd.grad(output, wanted, grad)
    assert count == 1
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves.values()]
    truths = torch.autograd.grad(
        nn.functional.linear(*exact), [t for t in exact if t.requires_grad], grad.double()
    )
    for leaf, result, other, truth in zip(wanted, results, expected, truths, strict=True):
        error, allowed = ((r.double() - truth).norm() for r in (result, other))
        assert error < 3 * allowed + (1e-7 if leaf is layer.bias else 1e-6) * truth.norm()


def test_derivatives_and_transforms_of_a_large_linear_layer(two_threads):
    """Second derivatives, of a convolution, and transforms of torch.func, of a linear layer."""
    layer, x = nn.Linear(16, 37), torch.randn(LARGE, requires_grad=True)

    def total(call, x):
        return call(x).tanh().sum()

    results = []
    for call in (layer, functools.partial(fast_cpu.linear, layer)):
        (first,) = torch.autograd.grad(total(call, x), x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [x, *layer.parameters()])
        plain = x.detach()
        tangent = torch.func.jvp(functools.partial(total, call), (plain,), (plain,))[1]
        gradient = torch.func.grad(functools.partial(total, call))
        each = torch.func.vmap(gradient)(torch.stack([plain, -plain]))
        results.append([first, *second, tangent, each])
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_several_biases_at_once(two_threads):
    """As of an ensemble: PyTorch adds no tensor in place that has one more dimension."""
    layer, x = Applied(16, 37), torch.randn(LARGE)
    biases = torch.randn(2, 37)

    def run(bias):
        return torch.func.functional_call(layer, {'layer.bias': bias}, (x,))

    output = torch.func.vmap(run)(biases)
    for result, bias in zip(output, biases, strict=True):
        expected = nn.functional.linear(x, layer.layer.weight, bias)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class Applied(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.layer = nn.Linear(*sizes)

    def forward(self, x):
        return fast_cpu.linear(self.layer, x)


@pytest.mark.parametrize('gradients', [False, True])
def test_compilers_see_linear_layers(gradients, two_threads):
    layer, _ = make()
    x = torch.randn(1, 40, 64, layer.channels)
    with torch.set_grad_enabled(gradients):
        graph = torch.export.export(layer, (x,)).graph
        traced = torch.jit.trace(layer, x)
    assert sum(node.target is torch.ops.aten.linear.default for node in graph.nodes) == 4
    assert sum(node.target is torch.ops.aten.conv2d.default for node in graph.nodes) == 1
    assert str(traced.inlined_graph).count('aten::linear') == 4


# ---- the switch, and PyTorch without its private names ------------------------------------------


def test_environment_variable():
    result = subprocess.run(
        [sys.executable, '-c', 'import ops_dcnv3; print(ops_dcnv3.explain_fast_cpu())'],
        env={**os.environ, 'OPS_DCNV3_FAST_CPU': '0'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == 'fast CPU layers: off (OPS_DCNV3_FAST_CPU=0)\n'
    assert explain_fast_cpu() == 'fast CPU layers: on'


def bare_module():
    module = nn.Module()
    del module._backward_pre_hooks
    return module


@pytest.mark.parametrize(
    ('owner', 'name', 'value', 'reason'),
    [
        (nn.modules.module, '_global_forward_hooks', None, 'hooks of a module'),
        (nn, 'Identity', bare_module, 'hooks of a module'),
        (torch._C._functorch, 'peek_interpreter_stack', None, 'transforms that run'),
        (torch._C._functorch, 'peek_interpreter_stack', lambda: None, 'behaves otherwise'),
        (torch._C, '_len_torch_dispatch_stack', None, 'modes that watch operators'),
        (forward_ad, '_current_level', None, 'modes that watch operators'),
        (torch.ops, 'mkldnn', types.SimpleNamespace(), 'convolution with GELU'),
    ],
)
def test_without_a_private_name(owner, name, value, reason, two_threads, monkeypatch):
    """The layer runs by itself then, and says why."""
    layer, _ = make()
    x = torch.randn(1, 40, 64, layer.channels)
    expected = layer(x)
    with monkeypatch.context() as without:
        # Gone while the module is imported only: PyTorch itself needs most of them.
        if value is None:
            without.delattr(owner, name)
        else:
            without.setattr(owner, name, value)
        importlib.reload(fast_cpu)
    try:
        assert explain_fast_cpu().startswith('fast CPU layers: off, because PyTorch')
        assert reason in explain_fast_cpu()
        count, output = convolutions(layer, x)
    finally:
        importlib.reload(fast_cpu)
    assert explain_fast_cpu() == 'fast CPU layers: on'
    assert convolutions(layer, x)[0] > count == 1  # the depth-wise one
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

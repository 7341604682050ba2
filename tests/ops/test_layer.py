"""How DCNv3 runs its linear layers: two of them as one, and large ones as convolutions."""

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3 import DCNv3, modules
from ops_dcnv3.modules import apply_linear


class Recorder(TorchDispatchMode):
    """Arguments of the op, and how many linear layers and convolutions run."""

    def __init__(self):
        super().__init__()
        self.linear, self.convolutions, self.op = 0, 0, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.linear += function.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.linear)
        self.convolutions += function.overloadpacket is torch.ops.aten.convolution
        if function.namespace == 'ops_dcnv3':
            self.op = args
        return function(*args, **(kwargs or {}))


def make(**settings):
    """A layer whose offsets and masks are not zero, and its input."""
    generator = torch.Generator().manual_seed(0)
    layer = DCNv3(16, group=2, **settings)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return layer, torch.randn(1, 5, 6, 16, generator=generator)


def linear_layers(layer, x):
    with Recorder() as recorder, torch.no_grad():
        output = layer(x)
    return recorder.linear, output


def separate(layer, x):
    """Output and gradients with the two layers called one by one."""
    layer.offset.register_forward_hook(lambda *args: None)
    return output_and_gradients(layer, x)


def output_and_gradients(layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output = layer(x)
    output.square().sum().backward()
    return output.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())


@pytest.mark.parametrize('settings', [dict(), dict(remove_center=True)], ids=str)
def test_equals_two_layers(settings):
    """The joint width is 54 and 48: with and without columns to fill it up to 16."""
    layer, x = make(**settings)
    keys = list(layer.state_dict())
    joint = output_and_gradients(layer.double(), x.double())
    assert linear_layers(layer, x.double())[0] == 3
    for value, truth in zip(joint, separate(layer, x.double()), strict=True):
        torch.testing.assert_close(value, truth)
    assert linear_layers(layer, x.double())[0] == 4
    assert list(layer.state_dict()) == keys
    assert {'offset.weight', 'offset.bias', 'mask.weight', 'mask.bias'} < set(keys)


def test_op_reads_both_parts_in_place():
    layer, x = make()
    with Recorder() as recorder, torch.no_grad():
        layer(x)
    offset, mask = recorder.op[1:3]
    assert offset.stride() == mask.stride() == (5 * 6 * 64, 6 * 64, 64, 1)
    assert offset.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()


def test_autocast():
    layer, x = make()
    with torch.autocast('cpu', torch.bfloat16):
        joint = output_and_gradients(layer, x)
        expected = separate(layer, x)
    # The gradient of the query is summed in another order. Measured: at most 0.005.
    for value, truth in zip(joint, expected, strict=True):
        assert (value - truth).norm() < 0.01 * truth.norm()


@pytest.mark.parametrize('name', ['offset', 'mask', 'input_proj', 'output_proj'])
@pytest.mark.parametrize('kind', ['pre', 'forward', 'backward', 'full_backward_pre', 'patched'])
def test_hooks_are_called(name, kind):
    layer, x = make()
    part, calls = getattr(layer, name), []

    def hook(*args):
        calls.append(1)

    if kind == 'pre':
        part.register_forward_pre_hook(hook)
    elif kind == 'forward':
        part.register_forward_hook(hook)
    elif kind == 'backward':
        part.register_full_backward_hook(hook)
    elif kind == 'full_backward_pre':
        part.register_full_backward_pre_hook(hook)
    else:
        plain = part.forward
        part.forward = lambda x: hook() or plain(x)
    output_and_gradients(layer, x)
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


@pytest.mark.parametrize(
    'shape', [LARGE, (2, 31, 17, 24), (1, 1, 1999, 32), (1200, 1, 1, 8), (1, 50, 30, 1)]
)
@pytest.mark.parametrize('strided', [False, True])
def test_linear_layer_as_a_convolution(shape, strided, two_threads):
    layer = nn.Linear(shape[-1], 37)
    x = torch.randn(shape, generator=torch.manual_seed(0))
    if strided:
        x = x.transpose(1, 2)
    with torch.no_grad():
        count, output = convolutions(apply_linear, layer, x)
        truth = layer.double()(x.double())
    assert count == 1
    assert output.dtype == torch.float32 and (strided or output.is_contiguous())
    torch.testing.assert_close(output.double(), truth, rtol=1e-5, atol=1e-6 * shape[-1])


@pytest.fixture
def fused(monkeypatch):
    """The activations that oneDNN has computed with a convolution."""
    activations = []
    run = modules._convolve_and_activate

    def record(*args):
        activations.append(args[7])
        return run(*args)

    monkeypatch.setattr(modules, '_convolve_and_activate', record)
    return activations


@pytest.mark.skipif(
    modules._convolve_and_activate is None, reason='this PyTorch has no such operator'
)
@pytest.mark.parametrize('shape', [LARGE, (2, 31, 17, 24), (1200, 1, 1, 8), (1, 50, 30, 1)])
@pytest.mark.parametrize('strided', [False, True])
def test_gelu_with_the_convolution(shape, strided, two_threads, fused):
    layer, gelu = nn.Linear(shape[-1], 37), nn.GELU()
    x = 5 * torch.randn(shape, generator=torch.manual_seed(0))
    if strided:
        x = x.transpose(1, 2)
    with torch.no_grad():
        output = apply_linear(layer, x, gelu)
        separate = gelu(apply_linear(layer, x))
        bad = x.clone()
        bad[0, 0, 0], bad[-1, -1, -1] = torch.nan, -torch.inf
        finite = apply_linear(layer, bad, gelu).isfinite()
        expected = gelu(apply_linear(layer, bad)).isfinite()
        truth = gelu(layer.double()(x.double()))
    assert fused == ['gelu', 'gelu']
    assert torch.equal(finite, expected) and not expected.all()
    assert output.dtype == torch.float32 and (strided or output.is_contiguous())
    error, allowed = ((o.double() - truth).abs().max() for o in (output, separate))
    assert error < 2 * allowed + 1e-7


@pytest.mark.parametrize(
    'why', ['gradients', 'small', 'tanh', 'SiLU', 'hook', 'mode', 'tangent', 'missing']
)
def test_activation_by_itself(why, two_threads, fused, monkeypatch):
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
        elif why == 'missing':
            monkeypatch.setattr(modules, '_convolve_and_activate', None)
        elif why == 'tangent':
            stack.enter_context(forward_ad.dual_level())
            x = forward_ad.make_dual(x, torch.ones_like(x))
        output = apply_linear(layer, x, act)
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
    'why', ['float64', 'autocast', 'small', 'empty', 'thread', 'precision', 'onednn']
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
        elif why == 'onednn':
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        count, output = convolutions(apply_linear, layer, x)
        assert count == 0
        assert torch.equal(output, layer(x))


def test_sparse_weights_and_weights_elsewhere(two_threads):
    layer, x = nn.Linear(16, 37), torch.randn(LARGE)
    with torch.no_grad():
        expected = layer(x)
        layer.weight = nn.Parameter(layer.weight.to_sparse_csr())
        torch.testing.assert_close(apply_linear(layer, x), expected)
        with pytest.raises(RuntimeError):
            apply_linear(nn.Linear(16, 37, device='meta'), x)


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
    count, output = convolutions(apply_linear, layer, x)
    results = torch.autograd.grad(output, wanted, grad)
    assert count == 1
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    truths = dict(
        zip(
            exact,
            torch.autograd.grad(
                nn.functional.linear(*exact.values()), list(exact.values()), grad.double()
            ),
            strict=True,
        )
    )
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    for name, result, other in zip(names, results, expected, strict=True):
        error, allowed = ((r.double() - truths[name]).norm() for r in (result, other))
        assert error < 3 * allowed + (1e-7 if name == 'bias' else 1e-6) * truths[name].norm()


def test_derivatives_and_transforms_of_a_large_linear_layer(two_threads):
    """Second derivatives, of a convolution, and transforms of torch.func, of a linear layer."""
    layer, x = nn.Linear(16, 37), torch.randn(LARGE, requires_grad=True)

    def total(call, x):
        return call(x).tanh().sum()

    results = []
    for call in (layer, functools.partial(apply_linear, layer)):
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
        return apply_linear(self.layer, x)


def test_wrong_dtype_of_a_bias_is_refused(two_threads):
    layer = nn.Linear(16, 37)
    layer.bias = nn.Parameter(layer.bias.detach().double())
    with pytest.raises(RuntimeError, match='dtype|double|Double'):
        apply_linear(layer, torch.randn(LARGE))


def test_newer_settings_of_precision(two_threads):
    """After which PyTorch does not answer in terms of the older one."""
    layer, x = nn.Linear(16, 37), torch.randn(LARGE)
    settings = torch.backends.mkldnn
    if not hasattr(settings, 'matmul'):
        pytest.skip('this PyTorch has the older setting alone')
    before = settings.matmul.fp32_precision
    try:
        settings.matmul.fp32_precision = 'bf16'
        count, output = convolutions(apply_linear, layer, x)
        assert count == 0 and torch.equal(output, layer(x))
    finally:
        settings.matmul.fp32_precision = before


@pytest.mark.parametrize('gradients', [False, True])
def test_compilers_see_linear_layers(gradients, two_threads):
    layer, _ = make()
    x = torch.randn(1, 40, 64, layer.channels)
    with torch.set_grad_enabled(gradients):
        graph = torch.export.export(layer, (x,)).graph
        traced = torch.jit.trace(layer, x)
    assert sum(node.target is torch.ops.aten.linear.default for node in graph.nodes) == 3
    assert sum(node.target is torch.ops.aten.conv2d.default for node in graph.nodes) == 1
    assert str(traced.inlined_graph).count('aten::linear') == 3

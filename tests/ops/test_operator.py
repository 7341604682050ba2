"""The op as a PyTorch operator: registration, gradients, compilation, choice of a backend."""

import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from op_cases import ALL_BACKENDS, KERNELS, device_of, operators, random_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

import ops_dcnv3
from ops_dcnv3 import (
    available_backends,
    backends,
    dcnv3,
    explain_backend,
    registration,
    use_backend,
)

OPTIONS = ([3, 3, 1, 1, 1, 1, 1, 1], 2, 1.0, False, False)


def inputs(dtype=torch.float64, requires_grad=True, size=(2, 4, 5), device='cpu', **options):
    tensors = random_inputs(*size, 2, 3, **options)
    return [
        tensors[key].to(device, dtype).requires_grad_(requires_grad)
        for key in ('input', 'offset', 'mask')
    ]


@pytest.mark.parametrize('backend', ALL_BACKENDS)
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(mask_is_logits=True),
        dict(stride=2, offset_scale=2.0),
        dict(kernel_size=(3, 5), padding=(1, 2), dilation=(1, 2), remove_center=True),
    ],
    ids=str,
)
def test_gradcheck(options, backend):
    sampling = {key: value for key, value in options.items() if key != 'mask_is_logits'}
    device = device_of(backend)
    assert torch.autograd.gradcheck(
        lambda *tensors: dcnv3(*tensors, groups=2, backend=backend, **options),
        inputs(size=(1, 3, 5), device=device, **sampling),
        nondet_tol=0.0 if device == 'cpu' else 1e-12,
        fast_mode=backend != 'cpu',  # along random directions: few calls of slow backends
    )


@pytest.mark.parametrize(
    ('backend', 'batch', 'logits', 'dtype', 'strided'),
    [
        ('cpu', 2, False, torch.float64, False),
        ('cpu', 2, True, torch.float32, True),
        ('cpu', 2, True, torch.bfloat16, False),
        ('cpu', 2, False, torch.float16, False),
        ('cpu', 0, True, torch.float32, False),
        *((name, 1, logits, torch.float32, logits) for name in KERNELS[1:] for logits in (0, 1)),
    ],
)
def test_opcheck(backend, batch, logits, dtype, strided):
    """Strided: slices of one tensor, and an image with another order of dimensions."""
    tensors = inputs(dtype, False, size=(batch, 4, 5), device=device_of(backend))
    if strided:
        input, *both = tensors
        turned = input.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        tensors = [turned, *torch.cat(both, -1).split([36, 18], -1)]
        assert not any(tensor.is_contiguous() for tensor in tensors)
    forward, backward = operators(backend)
    options = (*OPTIONS[:-1], bool(logits))
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.library.opcheck(forward, (*leaves, *options))
    torch.library.opcheck(backward, (torch.randn_like(tensors[0]), *tensors, *options))


def test_vmap_falls_back_with_pytorchs_warning(capfd):
    """One call for each entry, as for every operator without a batching rule."""
    tensors = [torch.stack([t, t + 0.25]) for t in inputs(requires_grad=False, size=(1, 4, 5))]

    def gradients(*tensors):
        return torch.ops.ops_dcnv3.backward(tensors[0], *tensors, *OPTIONS)

    for name, call in (
        ('forward', lambda *tensors: (dcnv3(*tensors, groups=2),)),
        ('backward', gradients),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            results = torch.vmap(call)(*tensors)
        messages = capfd.readouterr().err + ''.join(str(warning.message) for warning in caught)
        assert f'not yet implemented the batching rule for ops_dcnv3::{name}' in messages
        for index in range(2):
            expected = call(*(tensor[index] for tensor in tensors))
            assert all(map(torch.equal, (result[index] for result in results), expected))


@pytest.mark.parametrize(
    ('backend', 'dynamic'), [('cpu', False), ('cpu', True), *((b, True) for b in KERNELS[2:])]
)
def test_compiles_without_graph_break(backend, dynamic):
    def function(*tensors):
        return dcnv3(*tensors, groups=2, backend=backend).relu()

    compiled = torch.compile(function, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for height in (4, 6):
        tensors = inputs(size=(1, height, 5), device=device_of(backend))
        grads = [torch.autograd.grad(f(*tensors).sum(), tensors) for f in (function, compiled)]
        assert all(map(torch.equal, *grads))


@pytest.mark.parametrize('backend', KERNELS)
def test_no_second_derivative(backend):
    tensors = inputs(size=(1, 3, 4), device=device_of(backend))
    output = dcnv3(*tensors, groups=2, backend=backend)
    (grad,) = torch.autograd.grad(output.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative.*reference'):
        grad.sum().backward()


@pytest.mark.parametrize('backend', KERNELS)
def test_forward_mode_is_refused_not_dropped(backend):
    input, offset, mask = inputs(requires_grad=False, size=(1, 3, 4), device=device_of(backend))

    def call(x, backend):
        return dcnv3(x, offset, mask, groups=2, backend=backend)

    with pytest.raises(RuntimeError, match='no forward-mode derivative.*reference'):
        torch.func.jvp(lambda x: call(x, backend), (input,), (input,))
    # The op is linear in its input.
    value, tangent = torch.func.jvp(lambda x: call(x, 'reference'), (input,), (input,))
    torch.testing.assert_close(tangent, value)
    with torch.autograd.forward_ad.dual_level():
        torch.testing.assert_close(call(input, backend), value)


def test_functorch_transforms_are_refused():
    input, offset, mask = (tensor.detach() for tensor in inputs())

    def total(x, backend):
        return dcnv3(x, offset, mask, groups=2, backend=backend).sum()

    with pytest.raises(RuntimeError, match='functorch transforms'):
        torch.func.grad(total)(input, 'cpu')
    expected = torch.autograd.grad(total(input.requires_grad_(), 'cpu'), input)[0]
    gradient = torch.func.grad(total)(input.detach(), 'reference')
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize('backend', KERNELS)
def test_autograd_keeps_the_three_tensors_alone(backend):
    """As they are: the probabilities, or copies of slices, would take memory till the backward."""
    device = device_of(backend)
    input, offset, mask = inputs(torch.float32, requires_grad=False, device=device)
    offset, mask = torch.cat([offset, mask], -1).requires_grad_().split([36, 18], -1)
    assert not mask.is_contiguous()
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    tensors = [input.requires_grad_(), offset, mask]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dcnv3(*tensors, groups=2, mask_is_logits=True, backend=backend)

    def places(tensors):
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]

    assert places(kept) == places(tensors)


def test_only_needed_gradients_are_returned():
    leaves = inputs()
    expected = torch.autograd.grad(dcnv3(*leaves, groups=2, backend='reference').sum(), leaves)
    for needed in range(3):
        tensors = [tensor.detach() for tensor in inputs()]
        tensors[needed].requires_grad_()
        dcnv3(*tensors, groups=2, backend='cpu').sum().backward()
        assert [tensor.grad is not None for tensor in tensors] == [i == needed for i in range(3)]
        torch.testing.assert_close(tensors[needed].grad, expected[needed])
    with torch.no_grad():
        assert not dcnv3(*inputs(), groups=2, backend='cpu').requires_grad


def test_autocast_mixes_dtypes():
    input, offset, mask = inputs(torch.float32, requires_grad=False)
    with torch.autocast('cpu', torch.bfloat16):
        output = dcnv3(input.bfloat16(), offset, mask, groups=2)
    assert output.dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r'offset.*bfloat16.*float32'):
        dcnv3(input.bfloat16(), offset, mask, groups=2)


def test_backends_explain_themselves():
    assert list(available_backends()) == list(backends.BACKENDS)
    assert list(backends.BACKENDS)[-1] == 'reference'
    assert available_backends()['cpu'] == (True, 'compiled C++ kernels')
    for name, device in (('cuda', 'cpu'), ('cpu', 'cuda'), ('triton', 'xpu')):
        ok, reason = available_backends(device)[name]
        assert not ok and re.fullmatch(rf'it computes .* tensors, not {device} ones', reason)
    text = explain_backend()
    assert "runs on backend 'cpu'" in text and 'reference: can run' in text
    assert 'argument' in explain_backend(backend='reference')


def without(monkeypatch, name):
    """As if a backend could not run in this installation."""
    missing = backends.BACKENDS[name]._replace(obstacle='it is not installed; install it')
    monkeypatch.setitem(backends.BACKENDS, name, missing)


def test_without_a_gpu_no_backend_for_gpus_can_run_there(monkeypatch):
    """Even where both are installed; tensors without data need none."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    reason = f'no GPU found (torch {torch.__version__} sees none)'
    for name in ('cuda', 'triton'):
        installed = backends.BACKENDS[name]._replace(obstacle=None)
        monkeypatch.setitem(backends.BACKENDS, name, installed)
        assert available_backends('cuda')[name] == (False, reason)
        assert f'  {name}: cannot run: {reason}' in explain_backend('cuda')
        with pytest.raises(RuntimeError, match=rf"'{name}' .* cannot run on cuda: no GPU found"):
            explain_backend('cuda', backend=name)
        assert available_backends('meta')[name][0]


WITHOUT_EXTENSION = """
import sys
# As if there were no extension, nor anything of OpenMMLab.
sys.modules.update(dict.fromkeys(['ops_dcnv3._C', 'mmengine', 'mmcv']))
import torch
from ops_dcnv3 import available_backends
assert not {'internimage_mm', 'triton'} & set(sys.modules)
assert not available_backends()['cpu'][0]
for name in ('forward', 'backward'):
    print(getattr(torch.ops.ops_dcnv3, name).default._schema)
"""


def test_torch_alone():
    """Nothing else is needed or imported; the operators are the same without the extension."""
    command = [sys.executable, '-c', WITHOUT_EXTENSION]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [
        str(getattr(torch.ops.ops_dcnv3, name).default._schema) for name in ('forward', 'backward')
    ]


def test_extension_for_another_torch_is_not_loaded(monkeypatch, tmp_path):
    file = tmp_path / '_C.abi3.so'
    file.write_bytes(b'\0ops_dcnv3 for torch 1.13.1\0')  # loading it would raise
    spec = SimpleNamespace(origin=str(file))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: spec)
    assert registration._load_extension() == (
        f'the compiled extension is for torch 1.13, but torch {torch.__version__} is installed'
    )


# The change, the message, and that of the compiled operators if it is another.
WRONG_CALLS = {
    'groups': (dict(groups=4), 'groups must divide 6 channels, got 4'),
    'offset': (
        dict(offset=(2, 4, 5, 18)),
        r'offset must have shape .*, got \(2, 4, 5, 18\)',
        r'offset or mask has shape \[2, 4, 5, 18\], expected \[2, 4, 5, 36\]',
    ),
    'mask': (
        dict(mask=(1, 4, 5, 18)),
        r'mask must have shape .*, got \(1, 4, 5, 18\)',
        r'offset or mask has shape \[1, 4, 5, 18\]',
    ),
    'dimensions': (
        dict(input=(4, 5, 6)),
        r'input must have 4 dimensions, got \(4, 5, 6\)',
        'tensors must have 4 dimensions',
    ),
    'kernel': (dict(window=[9, 9, 1, 1, 1, 1, 1, 1]), 'does not fit'),
    'stride': (dict(window=[3, 3, 0, 1, 1, 1, 1, 1]), 'must be positive, padding not negative'),
    'window': (dict(window=[3, 3]), r'window must be kernel_size, .*got \[3, 3\]'),
    'dtype': (dict(dtype=torch.float64), 'offset must have the dtype of input', 'one dtype'),
    'integers': (dict(dtype=torch.int32), 'input must be float32', 'one dtype'),
}


def wrong_call(backend, wrong):
    """The operator itself, as the public function checks before; tensors and messages."""
    change, *messages = WRONG_CALLS[wrong]
    given = dict(input=(2, 4, 5, 6), offset=(2, 4, 5, 36), mask=(2, 4, 5, 18)) | change
    tensors = [
        torch.zeros(given[key], device=device_of(backend)) for key in ('input', 'offset', 'mask')
    ]
    tensors[0] = tensors[0].to(given.get('dtype', torch.float32))
    options = (given.get('window', OPTIONS[0]), given.get('groups', 2), *OPTIONS[2:])

    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return operators(backend)[0](*tensors, *options)

    return Model(), tensors, messages


@pytest.mark.parametrize('wrong', WRONG_CALLS)
@pytest.mark.parametrize('backend', KERNELS)
def test_wrong_call(backend, wrong):
    """The kernels must not read beyond a tensor that is too small; nor are fake tensors taken."""
    model, tensors, messages = wrong_call(backend, wrong)
    of_kernels = messages[-1 if backend in ('cpu', 'cuda') else 0]
    with pytest.raises((TypeError, ValueError), match=of_kernels):
        model(*tensors)
    with FakeTensorMode() as mode, pytest.raises((TypeError, ValueError), match=messages[0]):
        model(*map(mode.from_tensor, tensors))


@pytest.mark.parametrize('wrong', ['offset', 'groups'])
def test_tracing_a_wrong_call_fails(wrong):
    model, tensors, (message, *_) = wrong_call('cpu', wrong)
    torch._dynamo.reset()  # else sizes that differ between the cases become symbols
    with pytest.raises(Exception, match=message):
        torch.compile(model, fullgraph=True, backend='eager')(*tensors)
    with pytest.raises(Exception, match=message):
        torch.export.export(model, tuple(tensors), strict=False)


@pytest.mark.parametrize('backend', KERNELS)
def test_wrong_output_gradient(backend):
    compiled = backend in ('cpu', 'cuda')
    for device in (device_of(backend), 'meta'):
        tensors = [tensor.to(device) for tensor in inputs(requires_grad=False)]
        message = r'grad_output must have shape .*, got \(2, 4, 4, 6\)'
        if compiled and device != 'meta':
            message = 'grad_output must be like the output'
        with pytest.raises(ValueError, match=message):
            operators(backend)[1](tensors[0][:, :, :4], *tensors, *OPTIONS)


def test_export_with_dynamic_shapes_of_the_operator():
    """The checks of the fake kernels do not fix sizes."""

    class Model(torch.nn.Module):
        def forward(self, input, offset, mask):
            return torch.ops.ops_dcnv3.forward(input, offset, mask, *OPTIONS)

    sizes = {0: torch.export.Dim('n', min=2), 1: torch.export.Dim('h', min=2)}
    tensors = inputs(torch.float32, requires_grad=False, size=(3, 4, 5))
    program = torch.export.export(Model(), tuple(tensors), dynamic_shapes=(sizes,) * 3)
    others = inputs(torch.float32, requires_grad=False, size=(2, 7, 5))
    assert torch.equal(program.module()(*others), Model()(*others))


def test_backend_order_of_precedence(monkeypatch):
    device = torch.device('cpu')
    monkeypatch.setattr(backends, '_ENVIRONMENT', 'reference')
    assert backends.select_backend(device, None)[0] == 'reference'
    with use_backend('cpu'):
        assert backends.select_backend(device, None)[0] == 'cpu'
        assert backends.select_backend(device, 'reference')[0] == 'reference'
    assert backends.select_backend(device, None)[0] == 'reference'
    monkeypatch.setattr(backends, '_ENVIRONMENT', 'fast')
    with pytest.raises(ValueError, match="OPS_DCNV3_BACKEND must be one of cpu, cuda.*'fast'"):
        backends.select_backend(device, None)


@pytest.mark.parametrize(
    'call',
    [lambda: dcnv3(*inputs(), groups=2, backend='fast'), lambda: use_backend('fast').__enter__()],
)
def test_unknown_backend(call):
    with pytest.raises(ValueError, match=r"cpu, cuda, .*reference.*'fast'"):
        call()


def test_backend_that_cannot_run(monkeypatch):
    with pytest.raises(RuntimeError, match=r"'cpu'.*cannot run on cuda: it computes CPU tensors"):
        explain_backend('cuda', backend='cpu')
    without(monkeypatch, 'cpu')
    with pytest.raises(RuntimeError, match=r"'cpu'.*cannot run on cpu: it is not installed"):
        dcnv3(*inputs(), groups=2, backend='cpu')


@pytest.mark.parametrize('backend', ALL_BACKENDS)
def test_meta_tensors(backend):
    tensors = [tensor.to('meta') for tensor in inputs(size=(2, 8, 9), stride=2)]
    output = dcnv3(*tensors, groups=2, stride=2, backend=backend)
    assert output.device.type == 'meta' and output.shape == (2, 4, 5, 6)


def test_without_extension_one_warning_and_same_result(monkeypatch):
    expected = dcnv3(*inputs(), groups=2)
    without(monkeypatch, 'cpu')
    monkeypatch.setattr(backends, '_warned', False)
    with pytest.warns(RuntimeWarning, match=r'(?s)slow plain PyTorch.*install it'):
        output = dcnv3(*inputs(), groups=2)
    torch.testing.assert_close(output, expected)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dcnv3(*inputs(), groups=2)


def test_public_names():
    assert set(ops_dcnv3.__all__) <= set(dir(ops_dcnv3))

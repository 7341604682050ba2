"""The Triton backend: choice, operators and compilation. Its values are tested in test_values.py.

Without a GPU the kernels run in Triton's interpreter, see tests/conftest.py.
"""

import os
import subprocess
import sys

import pytest
import torch
from op_cases import NAMES, REORDERED, device_of, random_inputs, relative_error, run
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch.utils._python_dispatch import TorchDispatchMode

from ops_dcnv3 import available_backends, backends, dcnv3, explain_backend, triton_kernels

DEVICE = device_of('triton')
OPTIONS = ([3, 3, 1, 1, 1, 1, 1, 1], 2, 1.0, False)
interpreted = pytest.mark.skipif(not triton_kernels.INTERPRETED, reason='is about the interpreter')


def inputs(requires_grad=False, dtype=torch.float32, size=(1, 3, 4)):
    tensors = random_inputs(*size, 2, 3)
    return [
        tensors[key].to(DEVICE, dtype).requires_grad_(requires_grad)
        for key in ('input', 'offset', 'mask')
    ]


class Recorder(TorchDispatchMode):
    """Names of the operators of this project that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == 'ops_dcnv3':
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_names_run_side_by_side():
    tensors = inputs()
    with Recorder() as recorder:
        for name in ('triton', 'cpu', 'triton'):
            dcnv3(*(t.to(device_of(name)) for t in tensors), groups=2, backend=name)
    assert recorder.names == ['triton_forward', 'forward', 'triton_forward']


@interpreted
def test_interpreter_is_not_chosen_by_itself(monkeypatch):
    assert available_backends()['triton'][0]
    assert explain_backend().startswith("dcnv3 on cpu runs on backend 'cpu'")
    missing = backends.BACKENDS['cpu']._replace(obstacle='the compiled extension is missing')
    monkeypatch.setitem(backends.BACKENDS, 'cpu', missing)
    assert explain_backend().startswith("dcnv3 on cpu runs on backend 'reference'")


def test_reasons(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    no_cuda = backends.BACKENDS['cuda']._replace(obstacle='no CUDA kernels')
    monkeypatch.setitem(backends.BACKENDS, 'cuda', no_cuda)
    compiled = backends.BACKENDS['triton']._replace(devices=('cuda',), automatic=True)
    monkeypatch.setitem(backends.BACKENDS, 'triton', compiled)
    assert backends.select_backend(torch.device('cuda'), None)[0] == 'triton'
    with pytest.raises(RuntimeError, match="'triton'.*cannot run on cpu: it computes CUDA tensors"):
        dcnv3(*(tensor.cpu() for tensor in inputs()), groups=2, backend='triton')
    assert 'not xpu ones' in available_backends('xpu')['triton'][1]


def test_compiled_graph_runs_the_named_backend():
    def function(*tensors):
        return dcnv3(*tensors, groups=2, backend='triton') * 2

    tensors = inputs(requires_grad=True)
    expected = torch.autograd.grad(function(*tensors).sum(), tensors)
    record = AotEagerAndRecordGraphs()
    compiled = torch.compile(function, fullgraph=True, backend=record)
    grads = torch.autograd.grad(compiled(*tensors).sum(), tensors)
    targets = [
        str(node.target)
        for graph in (*record.fw_graphs, *record.bw_graphs)
        for node in graph.graph.nodes
    ]
    assert [target for target in targets if 'ops_dcnv3' in target] == [
        'ops_dcnv3.triton_forward.default',
        'ops_dcnv3.triton_backward.default',
    ]
    for grad, truth in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, truth)


@interpreted
def test_block_sizes_of_a_gpu(monkeypatch):
    """The interpreter takes larger blocks to be quick; those of a GPU give the same."""
    tensors = random_inputs(2, 5, 7, 3, 4)
    options = dict(groups=3, mask_is_logits=True, backend='triton')
    expected = run(tensors, options, torch.float32)
    monkeypatch.setattr(triton_kernels, '_INTERPRETED_ROWS', 1)
    assert 4 * triton_kernels._blocks(dict(CHANNELS=4, K=9, rows=210))['BLOCK_R'] < 2 * 5 * 7 * 3
    result = run(tensors, options, torch.float32)
    for name in NAMES:
        # The order in which a pixel's gradient is added up changes with the blocks.
        assert relative_error(result[name], expected[name].double()) < REORDERED, name


def test_backward_is_not_deterministic_on_a_gpu(monkeypatch):
    """The error comes before the launch, so it is seen without a GPU as well."""
    tensors = [torch.zeros_like(tensor, device='meta') for tensor in inputs()]
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match="'triton' does not have a deterministic implementation"):
        triton_kernels.backward(torch.zeros_like(tensors[0]), *tensors, *OPTIONS, False)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ops_dcnv3 import triton_kernels

POINTERS = {torch.float32: 'fp32', torch.float64: 'fp64', torch.bfloat16: 'bf16',
            torch.float16: 'fp16'}

def compile(kernel, dtype, target, group_channels, logits):
    tensors = [torch.empty(1, 7, 9, 2 * c, dtype=dtype, device='meta')
               for c in (group_channels, 18, 9)]
    options = ((3, 3, 1, 1, 1, 1, 1, 1), 2, 1.0, False, logits)
    _, arguments = triton_kernels._arguments(*tensors, *options)
    arguments.update(triton_kernels._blocks(arguments))
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.isupper():
            signature[name], constants[index,] = 'constexpr', arguments[name]
        elif name in arguments:
            signature[name] = 'i32'
        else:
            wide = name == 'grad_input' and dtype != torch.float64
            signature[name] = '*fp32' if wide else '*' + POINTERS[dtype]
            attributes[index,] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = dict(num_warps=arguments['num_warps'])
    return triton.compile(source, target=target, options=options).asm

for capability, dtype, group_channels, logits in (
    (75, torch.float16, 32, True), (80, torch.float64, 5, False), (90, torch.bfloat16, 16, True),
):
    target = GPUTarget('cuda', capability, 32)
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        asm = compile(kernel, dtype, target, group_channels, logits)
        assert asm['cubin']
        # Channels are read 16 bytes at a time.
        assert group_channels == 5 or 'ld.global.v4.b32' in asm['ptx'], (capability, dtype)
target = GPUTarget('hip', 'gfx942', 64)
assert compile(triton_kernels._backward_kernel, torch.bfloat16, target, 16, True)['hsaco']
"""


def test_compiles_for_gpus(tmp_path):
    """To machine code, with the assembler that triton brings; in a process without interpreter."""
    environment = {**os.environ, 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    subprocess.run([sys.executable, '-c', COMPILE], check=True, timeout=300, env=environment)

"""What only a GPU has: streams, graphs, memory. Skipped without one.

`tools/gpu_check.sh` builds the kernels and runs this, and the tests of values and of the operator
with this backend. What needs no GPU is in test_cuda_emulated.py and test_cuda_sources.py.
"""

import pytest
import torch
from op_cases import TOLERANCES, random_inputs, relative_error

from ops_dcnv3 import available_backends, dcnv3, explain_backend

OK, REASON = available_backends('cuda')['cuda']
if not OK:
    pytest.skip(REASON, allow_module_level=True)


@pytest.fixture(params=[False, True], ids=['atomics', 'ordered'])
def ordered(request):
    """Run with atomics and with the deterministic path."""
    torch.use_deterministic_algorithms(request.param)
    return request.param


def inputs(dtype=torch.float32, size=(2, 9, 11, 4, 16), seed=0):
    tensors = random_inputs(*size, seed=seed)
    return [tensors[key].to('cuda', dtype) for key in ('input', 'offset', 'mask', 'grad_output')]


def forward_backward(input, offset, mask, grad_output, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in (input, offset, mask)]
    output = dcnv3(*leaves, backend='cuda', **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def test_is_chosen_by_itself():
    assert explain_backend('cuda').startswith("dcnv3 on cuda runs on backend 'cuda'")


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_algorithms_are_honoured(dtype):
    """The same bits each time, where many points meet in few pixels."""
    torch.use_deterministic_algorithms(True)
    tensors = inputs(dtype, (2, 64, 64, 4, 16))
    tensors[1].mul_(0.1).sub_(torch.linspace(0, 40, 64, device='cuda', dtype=dtype)[:, None])
    first = forward_backward(*tensors, groups=4)
    for _ in range(5):
        again = forward_backward(*tensors, groups=4)
        assert all(map(torch.equal, first, again))


def test_runs_on_the_current_stream():
    """A long kernel before it, on the same side stream, writes what the op reads."""
    input, offset, mask, _ = inputs()
    expected = dcnv3(input, offset, mask, groups=4, backend='cuda')
    busy = torch.randn(4096, 4096, device='cuda')
    late = torch.zeros_like(input)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy * 1e-3
        late.copy_(input)
        output = dcnv3(late, offset, mask, groups=4, backend='cuda')
    stream.synchronize()
    assert torch.equal(output, expected)


def test_graph_capture(ordered):
    tensors = inputs()
    forward_backward(*tensors, groups=4)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_backward(*tensors, groups=4)
    for seed in (1, 2):
        for tensor, new in zip(tensors, inputs(seed=seed), strict=True):
            tensor.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        for actual, truth in zip(captured, forward_backward(*tensors, groups=4), strict=True):
            torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    input, offset, mask, _ = inputs()
    with torch.autocast('cuda', dtype):
        output = dcnv3(input.to(dtype), offset, mask, groups=4, backend='cuda')
    assert output.dtype == dtype
    expected = dcnv3(*(t.to(dtype) for t in (input, offset, mask)), groups=4, backend='cuda')
    assert torch.equal(output, expected)


def test_backward_keeps_its_inputs_only():
    input, offset, mask, _ = inputs(size=(1, 64, 64, 4, 16))
    leaves = [tensor.requires_grad_() for tensor in (input, offset, mask)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    output = dcnv3(*leaves, groups=4, mask_is_logits=True, backend='cuda')
    assert torch.cuda.memory_allocated() - before <= output.numel() * 4 + 512


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_device_guard():
    tensors = [tensor.to('cuda:1') for tensor in inputs()]
    assert torch.cuda.current_device() == 0
    result = forward_backward(*tensors, groups=4)
    assert all(tensor.device.index == 1 for tensor in result)
    with pytest.raises(ValueError, match='device'):
        dcnv3(tensors[0], tensors[1].to('cuda:0'), tensors[2], groups=4, backend='cuda')


def test_more_than_2_to_31_elements(ordered):
    """Of input and output; the last image must be as if alone."""
    torch.use_deterministic_algorithms(ordered, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        batch, side, groups, group_channels = 9, 2048, 4, 16
        elements = batch * side * side * groups * group_channels
        assert elements > 2**31
        need = elements * (2 + 2 + 2 + 4) + batch * side * side * groups * 9 * 3 * 2 * 2
        if torch.cuda.mem_get_info()[0] < need * 1.3:
            pytest.skip(f'needs {need * 1.3 / 2**30:.0f} GiB of free GPU memory')
        rng = torch.Generator('cuda').manual_seed(0)

        def normal(*size):
            return torch.randn(
                batch, side, side, *size, generator=rng, device='cuda', dtype=torch.bfloat16
            )

        input, offset = normal(groups * group_channels), normal(groups * 18)
        mask, grad = normal(groups * 9), normal(groups * group_channels)
        large = forward_backward(input, offset, mask, grad, groups=groups)
        last = [tensor[-1:].clone() for tensor in (input, offset, mask, grad)]
        alone = forward_backward(*last, groups=groups)
        for actual, truth in zip(large, alone, strict=True):
            error = relative_error(actual[-1:], truth.double())
            assert error < (1e-30 if ordered else TOLERANCES[torch.bfloat16])
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_sizes_beyond_the_kernels_are_refused():
    far = 1 << 29
    with pytest.raises(ValueError, match='CUDA kernels take sizes of one image'):
        dcnv3(
            torch.zeros(1, 1, 1, 16, device='cuda'),
            torch.zeros(1, 2, 2, 2, device='cuda'),
            torch.zeros(1, 2, 2, 1, device='cuda'),
            kernel_size=1,
            padding=far,
            stride=2 * far,
            groups=1,
            backend='cuda',
        )

"""The backbone among PyTorch's own tools: compilation, export, half precision, several processes.

Autocast, activation checkpointing and training under torch.compile are in test_forward.py and
test_options.py.
"""

import pytest
import torch
from backbones.distributed import SMALL, gradients, train_in_process
from backbones.helpers import images, tiny, with_golden_weights

# Parities differ, and one is square. Below 33 pixels the last feature is one pixel wide, for which
# torch.compile always makes another graph.
SIZES = [(64, 96), (33, 47), (100, 100)]

# The default compiler fuses operators, whose sums then have another order on each processor.
# Measured: 5e-6 of the norm of an output or gradient.
FUSED = dict(rtol=1e-4, atol=5e-5)


@pytest.fixture
def model():
    return with_golden_weights(tiny(**SMALL)).eval()


@pytest.fixture
def two_levels(model):
    """A network with all kinds of layers, for compilers take long."""
    model.levels, model.out_indices = model.levels[:2], [0, 1]
    return model


def assert_all_close(results, expected, **tolerance):
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth, **tolerance)


def test_one_graph_for_all_image_sizes(two_levels):
    torch.compiler.reset()
    compiled = torch.compile(two_levels, fullgraph=True, dynamic=True, backend='aot_eager')
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = [compiled(images(2, 3, *size)) for size in SIZES]
    for size, outputs in zip(SIZES, results, strict=True):
        expected = two_levels(images(2, 3, *size))
        assert_all_close(outputs, expected)
        assert_all_close(gradients(two_levels, outputs), gradients(two_levels, expected))


def test_default_compiler(model):
    """Which writes and compiles C++, so of one block alone.

    In inference one program for all image sizes; in training for one, as before torch 2.15 it fails
    for dynamic ones.
    """
    block = model.levels[0].blocks[0]
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        for size in ((18, 24), (9, 12), (25, 25)):
            x = images(2, *size, 16)
            torch.testing.assert_close(compiled(x), block(x), **FUSED)
    torch.compiler.reset()
    x = images(2, 9, 12, 16)
    output, expected = torch.compile(block, fullgraph=True, dynamic=False)(x), block(x)
    torch.testing.assert_close(output, expected, **FUSED)
    assert_all_close(gradients(block, [output]), gradients(block, [expected]), **FUSED)


def test_export_with_dynamic_height_and_width(two_levels, tmp_path):
    height, width = (torch.export.Dim(name, min=33, max=4096) for name in ('height', 'width'))
    program = torch.export.export(
        two_levels, (images(2, 3, 70, 96),), dynamic_shapes=({2: height, 3: width},)
    )
    torch.export.save(program, tmp_path / 'backbone.pt2')
    exported = torch.export.load(tmp_path / 'backbone.pt2').module()
    calls = [node for node in program.graph.nodes if 'ops_dcnv3' in str(node.target)]
    assert [str(node.target) for node in calls] == ['ops_dcnv3.forward.default'] * 2
    with torch.no_grad():
        for size in SIZES:
            x = images(2, 3, *size)
            assert_all_close(exported(x), two_levels(x))


def test_bfloat16_inference(model):
    x = images(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model(x)
        outputs = model.bfloat16()(x.bfloat16())
    for output, truth in zip(outputs, expected, strict=True):
        assert output.dtype == torch.bfloat16
        # Measured: at most 0.016; bfloat16 keeps 8 bits (0.4 %).
        assert (output.float() - truth).norm() / truth.norm() < 0.04


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_cuda_autocast(model, dtype):
    model, x = model.cuda(), images(1, 3, 64, 96).cuda()
    expected = model(x)
    with torch.autocast('cuda', dtype):
        outputs = model(x)
    for output, truth in zip(outputs, expected, strict=True):
        assert (output.float() - truth).norm() / truth.norm() < 0.04
    sum(output.float().mean() for output in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_distributed_data_parallel(model, tmp_path):
    """Two processes with an image each have the mean of the gradients of both images."""
    result = tmp_path / 'gradients.pth'
    # Daemons, because Python waits for others when it ends, for ever if one of them hangs.
    torch.multiprocessing.spawn(
        train_in_process, (f'file://{tmp_path}/store', str(result), 240), nprocs=2, daemon=True
    )
    x = images(2, 3, 64, 64)
    each = [gradients(model, model(x[i : i + 1])) for i in range(2)]
    for gradient, *truths in zip(torch.load(result), *each, strict=True):
        torch.testing.assert_close(gradient, sum(truths) / 2)

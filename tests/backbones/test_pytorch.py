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
SIZES = [(64, 96), (33, 47), (65, 128), (100, 100), (160, 90)]

# The default compiler fuses operators, whose sums then have another order on each processor.
# Measured: 5e-6 of the norm of an output or gradient.
FUSED = dict(rtol=1e-4, atol=5e-5)


@pytest.fixture
def model():
    return with_golden_weights(tiny(**SMALL)).eval()


def test_one_graph_for_all_image_sizes(model):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = [compiled(images(2, 3, *size)) for size in SIZES]
    for size, outputs in zip(SIZES, results, strict=True):
        expected = model(images(2, 3, *size))
        for output, truth in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, truth)
        for gradient, truth in zip(
            gradients(model, outputs), gradients(model, expected), strict=True
        ):
            torch.testing.assert_close(gradient, truth)


def test_default_compiler_in_inference():
    """Which writes and compiles C++: one program for all image sizes.

    Of the first level, which has every kind of layer; compiling takes long.
    """
    model = with_golden_weights(tiny(**SMALL, out_indices=(0,))).eval()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        for size in SIZES:
            x = images(2, 3, *size)
            for output, truth in zip(compiled(x), model(x), strict=True):
                torch.testing.assert_close(output, truth, **FUSED)


def test_default_compiler_in_training():
    """Of the first level, for one image size; before torch 2.15 it fails for dynamic ones."""
    model = with_golden_weights(tiny(**SMALL, out_indices=(0,))).eval()
    torch.compiler.reset()
    x = images(2, 3, 33, 47)
    outputs = torch.compile(model, fullgraph=True, dynamic=False)(x)
    expected = model(x)
    for output, truth in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, truth, **FUSED)
    for gradient, truth in zip(gradients(model, outputs), gradients(model, expected), strict=True):
        torch.testing.assert_close(gradient, truth, **FUSED)


def test_export_with_dynamic_height_and_width(model, tmp_path):
    height, width = (torch.export.Dim(name, min=33, max=4096) for name in ('height', 'width'))
    program = torch.export.export(
        model, (images(2, 3, 70, 96),), dynamic_shapes=({2: height, 3: width},)
    )
    torch.export.save(program, tmp_path / 'backbone.pt2')
    exported = torch.export.load(tmp_path / 'backbone.pt2').module()
    calls = [node for node in program.graph.nodes if 'ops_dcnv3' in str(node.target)]
    assert [str(node.target) for node in calls] == ['ops_dcnv3.forward.default'] * 4
    with torch.no_grad():
        for size in SIZES:
            x = images(2, 3, *size)
            for output, truth in zip(exported(x), model(x), strict=True):
                torch.testing.assert_close(output, truth)


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

"""The op and its layer, exported to ONNX, give in two runtimes what they give in PyTorch."""

import importlib
import sys

import onnx
import onnxruntime
import openvino
import pytest
import torch
from op_cases import CASES, ODD_SHAPES, golden_case, random_inputs, relative_error, rounded, run
from torch import nn

from ops_dcnv3 import DCNv3, dcnv3
from ops_dcnv3.onnx import OPERATORS, check_onnxruntime, use_operator
from ops_dcnv3.openvino import deform_conv

# Largest error relative to the largest value. Measured 4.6e-6 and 3.9e-4; 1.3e-6 over golden data.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1.3e-3}
INPUTS = ('input', 'offset', 'mask')


def problems():
    """Tensors and options: the golden cases, and odd shapes with logits."""
    for case in CASES:
        yield f'golden {case}', golden_case(case)
    for shape in ODD_SHAPES:
        size, options = shape.values
        if shape.id not in ('empty batch', 'image without pixels'):
            tensors = random_inputs(*size, **options)
            yield shape.id, (tensors, {**options, 'groups': size[3], 'mask_is_logits': True})


PROBLEMS = dict(problems())


class AllProblems(nn.Module):
    """In one graph, because each export takes seconds."""

    def forward(self, *tensors):
        options = [options for _, options in PROBLEMS.values()]
        return [dcnv3(*tensors[3 * i : 3 * i + 3], **o) for i, o in enumerate(options)]


class Stranger(nn.Module):
    """A model with our layer that knows nothing of ONNX."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        layers = [
            DCNv3(16, group=2, center_feature_scale=True, offset_scale=2.0),
            DCNv3(16, kernel_size=(3, 5), group=4, stride=2, remove_center=True),
        ]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        return self.layers(self.stem(x).permute(0, 2, 3, 1)).mean(-1)


def run_onnxruntime(path, inputs):
    if sys.version_info < (3, 11) and 'DeformConv' in path.parent.name:
        pytest.skip('onnxruntime for Python 3.10 has no DeformConv')
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def run_openvino(path, inputs):
    model = openvino.convert_model(path, extension=deform_conv())
    openvino.save_model(model, path.with_suffix('.xml'), compress_to_fp16=False)
    # Read by a core without the extension.
    settings = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino.Core().compile_model(path.with_suffix('.xml'), 'CPU', settings)
    return list(compiled(inputs).values())


RUNTIMES = {'onnxruntime': run_onnxruntime, 'OpenVINO': run_openvino}


# Halves are cast before the two operators part.
@pytest.fixture(
    scope='module',
    params=[
        ('DeformConv', torch.float32),
        ('DeformConv', torch.float16),
        ('GridSample', torch.float32),
    ],
    ids=str,
)
def problem_file(request, tmp_path_factory):
    operator, dtype = request.param
    inputs = [tensors[name].to(dtype) for tensors, _ in PROBLEMS.values() for name in INPUTS]
    path = tmp_path_factory.mktemp(operator) / 'problems.onnx'
    with use_operator(operator):
        torch.onnx.export(AllProblems().eval(), tuple(inputs), path, dynamo=True)
    return dtype, path, [tensor.numpy() for tensor in inputs]


@pytest.fixture(scope='module', params=RUNTIMES)
def outputs(request, problem_file):
    dtype, path, inputs = problem_file
    results = RUNTIMES[request.param](path, inputs)
    return dtype, dict(zip(PROBLEMS, map(torch.from_numpy, results), strict=True))


@pytest.mark.parametrize('problem', PROBLEMS)
def test_every_option(problem, outputs):
    dtype, results = outputs
    tensors, options = PROBLEMS[problem]
    if dtype == torch.float32 and problem.startswith('golden'):
        truth = tensors['output']
    else:
        truth = run(rounded(tensors, dtype), {**options, 'backend': 'reference'}, torch.float64)
        truth = truth['output']
    assert results[problem].dtype == dtype
    assert relative_error(results[problem], truth) < TOLERANCES[dtype]


@pytest.fixture(scope='module', params=OPERATORS)
def layer_file(request, tmp_path_factory):
    model = Stranger().eval()
    path = tmp_path_factory.mktemp(request.param) / 'layer.onnx'
    # Large enough for the fast layers of eager mode, whose operators have no place in a file.
    x = torch.randn(2, 3, 32, 40)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with use_operator(request.param):
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=[sizes])
    return model, path, request.param


def test_file_is_standard_onnx(layer_file):
    _, path, operator = layer_file
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert [entry.domain for entry in model.opset_import] == ['']
    assert not model.functions and all(node.domain == '' for node in model.graph.node)
    ours = [node for node in model.graph.node if node.op_type == operator]
    assert len(ours) == 2 and all(name for node in ours for name in node.input)
    assert {len(value.type.tensor_type.shape.dim) for value in model.graph.output} == {3}


@pytest.mark.parametrize('runtime', RUNTIMES)
@pytest.mark.parametrize('size', [(1, 5, 6), (3, 32, 33)], ids=str)
def test_layer_with_other_sizes(size, runtime, layer_file):
    model, path, _ = layer_file
    batch, height, width = size
    x = torch.randn(batch, 3, height, width)
    (output,) = RUNTIMES[runtime](path, [x.numpy()])
    with torch.no_grad():
        truth = model.double()(x.double())
    model.float()
    assert relative_error(torch.from_numpy(output), truth) < TOLERANCES[torch.float32]


def test_plain_pytorch_is_translated_too():
    """The backend of installations without compiled kernels, which is many small operators."""
    layer = DCNv3(8, backend='reference').eval()
    program = torch.onnx.export(layer, (torch.randn(1, 4, 4, 8),), dynamo=True)
    assert sum(node.op_type == 'DeformConv' for node in program.model.graph) == 1


def test_openvino_model_has_no_custom_operation(layer_file):
    model = openvino.convert_model(layer_file[1], extension=deform_conv())
    assert {node.get_type_info().version_id[:5] for node in model.get_ops()} == {'opset'}


DEFORM_CONV = """<ir_version: 10, opset_import: ["": 19]>
graph (float[1,2,5,5] x, float[2,2,3,3] w, float[1,18,3,3] o, float[2] b, float[1,9,3,3] m)
=> (float[1,2,3,3] y) {
    y = DeformConv <strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1,
        offset_group = 1> (x, w, o, b, m)
}"""


def test_openvino_adds_the_bias(tmp_path):
    path = tmp_path / 'DeformConv.onnx'
    onnx.save(onnx.parser.parse_model(DEFORM_CONV), path)
    inputs = [torch.randn(size).numpy() for size in ((1, 2, 5, 5), (2, 2, 3, 3), (1, 18, 3, 3))]
    inputs += [torch.randn(2).numpy(), torch.rand(1, 9, 3, 3).numpy()]
    results = [torch.from_numpy(run(path, inputs)[0]) for run in RUNTIMES.values()]
    assert relative_error(*results) < TOLERANCES[torch.float32]


# ---- errors -------------------------------------------------------------------------------------


def test_opset_is_too_old():
    with pytest.raises(Exception, match='DeformConv needs ONNX opset 19 or later, got 18'):
        torch.onnx.export(DCNv3(8).eval(), (torch.randn(1, 4, 4, 8),), opset_version=18)


def test_legacy_exporter(tmp_path):
    with pytest.raises(RuntimeError, match='dynamo=True'):
        torch.onnx.export(DCNv3(8), (torch.randn(1, 4, 4, 8),), tmp_path / 'x', dynamo=False)


def test_onnxruntime_is_too_old(monkeypatch):
    monkeypatch.setattr(onnxruntime, '__version__', '1.25.0')
    check_onnxruntime()
    monkeypatch.setattr(onnxruntime, '__version__', '1.24.4')
    with pytest.raises(RuntimeError, match='onnxruntime 1.24.4 has no DeformConv.* GridSample'):
        check_onnxruntime()
    with use_operator('GridSample'):
        check_onnxruntime()


def test_unknown_operator():
    with (
        pytest.raises(ValueError, match="one of DeformConv, GridSample, got 'Conv'"),
        use_operator('Conv'),
    ):
        pass


@pytest.mark.parametrize('name, missing', [('onnx', 'onnxscript'), ('openvino', 'openvino')])
def test_missing_extra(name, missing, monkeypatch):
    monkeypatch.delitem(sys.modules, f'ops_dcnv3.{name}')
    for module in [m for m in sys.modules if m.partition('.')[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install internimage-mm\[deploy\]'):
        importlib.import_module(f'ops_dcnv3.{name}')

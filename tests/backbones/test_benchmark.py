import json
import sys

import pytest
import torch

from internimage_mm import benchmark as models
from internimage_mm import benchmark_exported
from internimage_mm.benchmark import main
from ops_dcnv3 import backends

SMALL = dict(arch='tiny', depths=[1, 1, 1, 1], drop_path_rate=0.0)


pytestmark = pytest.mark.usefixtures('quick_benchmark')


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """One block in each stage, and the smallest other model."""
    monkeypatch.setattr(models, 'BESIDE', ('convnext-atto', 'swin-tiny'))
    monkeypatch.setattr(models, 'InternImage', lambda **_: models_internimage(**SMALL))


models_internimage = models.InternImage
ARGUMENTS = ['--model', 'tiny', '--image', '64,96', '--seconds', '0']


def test_times_backbones(tmp_path, capsys):
    out = tmp_path / 'out.json'
    main([*ARGUMENTS, '--json', str(out)])
    result = json.loads(out.read_text())
    ours, reference, *theirs = result['rows']
    assert (ours['backend'], reference['backend']) == ('cpu', 'reference')
    assert [row['model'] for row in theirs] == list(models.BESIDE)
    for row in result['rows']:
        assert all(row[key]['ms'] > 0 for key in models.PASSES)
    ratios = {ratio['over']: ratio for ratio in ours['ratios']}
    assert len(ratios) == 3
    for key in models.PASSES:
        ratio = ratios['internimage-tiny reference float32'][key]
        assert ratio == reference[key]['ms'] / ours[key]['ms']
    text = capsys.readouterr().out
    assert 'internimage-tiny cpu float32 over swin-tiny float32: forward ' in text


def test_halves_are_for_inference():
    rows = models.run(['tiny'], [], (64, 96), 'bfloat16', 'cpu', 0)
    half, _, wide = rows
    assert (half['dtype'], wide['dtype'], wide['backend']) == ('bfloat16', 'float32', 'cpu')
    assert 'forward_backward' not in half and 'forward_backward' not in wide
    assert half['errors']['forward'] > wide['errors']['forward'] < models.TOLERANCES['float32']
    assert 'internimage-tiny cpu float32' in [ratio['over'] for ratio in half['ratios']]
    models.report(rows)


class Fails(torch.nn.Module):
    def forward(self, image):
        raise self.error


@pytest.mark.parametrize(
    ('error', 'failure'),
    [(TypeError('no halves\nat all'), 'no halves'), (AssertionError(), 'AssertionError()')],
)
def test_another_model_that_fails_gets_a_row(monkeypatch, capsys, error, failure):
    monkeypatch.setattr(Fails, 'error', error, raising=False)
    monkeypatch.setattr(models, 'theirs', lambda name: Fails())
    rows = models.run(['tiny'], ['swin-tiny'], (64, 96), 'float32', 'cpu', 0)
    assert rows[-1]['failure'] == failure and 'forward' not in rows[-1]
    assert [ratio['over'] for ratio in rows[0]['ratios']] == ['internimage-tiny reference float32']
    models.report(rows)
    assert f'swin-tiny float32 failed: {failure}' in capsys.readouterr().out


def test_points_move():
    """The offsets of each level spread over about a pixel."""
    model = models.internimage('tiny')
    spreads = []
    for module in model.modules():
        if isinstance(module, models.DCNv3):
            module.offset.register_forward_hook(lambda *args: spreads.append(args[2].std().item()))
    models.forward(model, torch.randn(1, 3, 64, 96))
    assert len(spreads) == 4 and all(0.5 < spread < 2 for spread in spreads)


def test_refuses_wrong_results(monkeypatch):
    slow = backends.BACKENDS['reference']

    def wrong(*args):
        return slow.call(*args) * 1.01

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=wrong))
    with pytest.raises(RuntimeError, match="on backend 'cpu': wrong: outputs of forward are"):
        models.run(['tiny'], [], (64, 96), 'float32', 'cpu', 0)


def test_each_result_is_held_to_its_own_tolerance():
    """NaN is refused wherever it stands, and outputs are not let off as gradients are."""
    right = [torch.ones(3) for _ in range(6)]

    def check(index, factor):
        results = [t * factor if i == index else t for i, t in enumerate(right)]
        return models.check(
            dict(forward_backward=lambda: results), dict(forward_backward=lambda: right), 'float32'
        )

    assert check(5, 1.01)['forward_backward'] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(RuntimeError, match=r'outputs of forward \+ backward are 1.0e-02'):
        check(1, 1.01)
    for index, what in (1, 'outputs'), (4, 'gradients'), (5, 'gradients'):
        with pytest.raises(RuntimeError, match=f'{what} of .* are nan from'):
            check(index, float('nan'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--model tiny enormous', "--model: unknown arch 'enormous'; known are tiny (t)"),
        ('--model tiny --beside swin-tiny resnet-50', "swin-large, got 'resnet-50'"),
        ('--model tiny --beside convnext-enormous', "got 'convnext-enormous'"),
        ('--model tiny --beside swin', '--beside must be of convnext-atto, '),
        ('--model tiny --image 64', 'H,W expected, all positive integers, got 64'),
    ],
)
def test_bad_values(monkeypatch, capsys, arguments, message):
    """One line, and status 2, before anything is built."""
    monkeypatch.setattr(models, 'run', None)
    with pytest.raises(SystemExit, match='2'):
        main(arguments.split())
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_beside_needs_mmpretrain(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mmpretrain.models', None)
    with pytest.raises(SystemExit, match='2'):
        main(['--model', 'tiny', '--beside', 'swin-tiny'])
    assert '--beside swin-tiny needs mmpretrain: ' in capsys.readouterr().err.splitlines()[-1]


def test_beside_without_a_name_means_none(tmp_path):
    out = tmp_path / 'out.json'
    main([*ARGUMENTS, '--beside', '--json', str(out)])
    rows = json.loads(out.read_text())['rows']
    assert [row['model'] for row in rows] == ['internimage-tiny'] * 2


@pytest.mark.parametrize(
    'model',
    [
        'internimage-tiny',
        'quickstart/mask-rcnn_internimage-nano_mini-coco',
        'quickstart/upernet_internimage-nano_mini-ade20k',
    ],
)
def test_times_exported_models_that_compute_the_same(model, tmp_path, monkeypatch):
    out = tmp_path / 'out.json'
    # GridSample, which older runtimes have too.
    arguments = ['--model', model, '--runtime', 'onnxruntime-grid-sample', '--image', '64,96']
    arguments += ['--seconds', '0', '--folder', str(tmp_path), '--json', str(out)]
    benchmark_exported.main(arguments)
    eager, exported = json.loads(out.read_text())['rows']
    assert (eager['runtime'], exported['runtime']) == ('PyTorch', 'onnxruntime-grid-sample')
    assert 0 < exported['error'] < 1e-5
    assert min(eager['ms'], exported['ms']) > 0
    monkeypatch.setattr(benchmark_exported, 'TOLERANCE', 0)
    with pytest.raises(RuntimeError, match=f'{model} in onnxruntime-grid-sample is wrong by'):
        benchmark_exported.main(arguments)


def test_needs_a_shipped_config(capsys):
    with pytest.raises(SystemExit):
        benchmark_exported.main(['--model', 'coco/mask-rcnn_internimage-tt'])
    assert 'there is no config coco/mask-rcnn_internimage-tt' in capsys.readouterr().err

"""The demo's own part: order of the steps, the table and what happens below the expectation."""

import importlib.util

import pytest

from .conftest import ROOT

AFTER = {'coco/bbox_mAP': 0.7, 'coco/segm_mAP': 0.6, 'mIoU': 80.0}


@pytest.fixture
def demo(monkeypatch):
    """tools/demo.py with tools that write what it reads and take no time."""
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.steps, module.after = [], dict(AFTER)

    def run_tool(name, *arguments):
        module.steps.append(name)
        if name == 'train.py':
            work_dir = arguments[arguments.index('--work-dir') + 1]
            work_dir.mkdir()
            (work_dir / 'last_checkpoint').write_text(str(work_dir / 'trained.pth'))

    def evaluate(task, checkpoint, work_dir, *options):
        module.steps.append(checkpoint.name)
        trained = checkpoint.name == 'trained.pth'
        return {key: module.after[key] if trained else 0.01 for key in task.metrics}

    monkeypatch.setattr(module, 'run_tool', run_tool)
    monkeypatch.setattr(module, 'evaluate', evaluate)
    monkeypatch.setattr(module, 'save_untrained', lambda config, path: None)
    return module


def test_steps_and_table(demo, tmp_path, capsys):
    demo.main(['--work-dir', str(tmp_path)])
    each = ['untrained.pth', 'train.py', 'trained.pth']
    assert demo.steps == ['make_mini_dataset.py', *each, *each]
    text = capsys.readouterr().out
    assert all(value in text for value in ('0.700', '0.600', '0.800', '0.010', '0.75'))
    assert text.splitlines()[-1].startswith('pictures')


@pytest.mark.parametrize('key', AFTER)
@pytest.mark.parametrize('value', [0.1, float('nan')])
def test_too_low_is_an_error(demo, tmp_path, key, value):
    demo.after[key] = value
    with pytest.raises(SystemExit, match='error: .*expected at least'):
        demo.main(['--work-dir', str(tmp_path)])

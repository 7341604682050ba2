"""tools/convert_checkpoint.py: what it prints, and that its result is the same model."""

import pytest
import torch

from .conftest import load_tool


def convert(*args):
    load_tool('convert_checkpoint').main([str(arg) for arg in args])


def test_trained_weights_to_official_and_back(tmp_path, segmentor_run, capsys):
    trained = segmentor_run / 'iter_2.pth'
    convert(trained, tmp_path / 'official.pth', '--to', 'official')
    printed = capsys.readouterr().out
    weights = torch.load(trained, weights_only=False)['state_dict']
    assert f"iter_2.pth: segmentor, {len(weights)} weights in 'state_dict'" in printed
    assert 'left out: ' in printed
    assert 'optimizer' in printed.partition('left out: ')[2].splitlines()[0]
    convert(tmp_path / 'official.pth', tmp_path / 'ours.pth')
    back = torch.load(tmp_path / 'ours.pth', weights_only=False)
    assert back['state_dict'].keys() == weights.keys()
    assert all(torch.equal(back['state_dict'][k], v) for k, v in weights.items())
    assert back['meta']['dataset_meta']['classes']


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match='^error: checkpoint none.pth does not exist$'):
        convert('none.pth', tmp_path / 'o.pth')

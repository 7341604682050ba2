"""--amp on a CPU: bfloat16 under autocast."""

import pytest
import torch

from internimage_mm.commands import load_config
from internimage_mm.training.amp import BFloat16OptimWrapper, enable_amp

from .conftest import run_tool


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_losses_are_near_those_of_float32(request, tmp_path, kind):
    config = request.getfixturevalue(f'{kind}_config')
    found, expected = [], []
    for losses, amp in ((found, ['--amp']), (expected, [])):
        work_dir = tmp_path / ('amp' if amp else 'float32')
        run_tool('train', config, *amp, '--work-dir', work_dir)
        scalars = torch.load(work_dir / 'iter_2.pth', weights_only=False)['message_hub']
        losses += list(scalars['log_scalars']['train/loss'].data[0])
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected


def test_float16_with_loss_scaling_where_the_gpu_has_no_bfloat16(monkeypatch, segmentor_config):
    monkeypatch.setattr('internimage_mm.training.amp.get_device', lambda: 'cuda')
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda including_emulation: False)
    optim_wrapper = load_config(str(segmentor_config)).optim_wrapper
    enable_amp(optim_wrapper)
    assert optim_wrapper.type == 'AmpOptimWrapper'
    assert optim_wrapper.loss_scale == 'dynamic'


def test_config_for_float16(segmentor_config):
    """Of the settings of a GPU without bfloat16, none is left."""
    optim_wrapper = load_config(str(segmentor_config)).optim_wrapper
    optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    enable_amp(optim_wrapper)
    assert optim_wrapper.type == BFloat16OptimWrapper.__name__
    assert not {'loss_scale', 'dtype'} & optim_wrapper.keys()

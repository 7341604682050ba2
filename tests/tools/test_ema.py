"""Official checkpoints of the old EMA hook, in a config that has mmengine's."""

import pickle

import torch
from golden.deterministic_weights import tensor_for
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .conftest import run_tool

EMA = """
_base_ = '{base}'
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=1e-4, update_buffers=True)]
"""


def predictions(config, checkpoint, folder):
    run_tool('test', config, checkpoint, '--work-dir', folder, '--out', folder / 'out.pkl')
    with open(folder / 'out.pkl', 'rb') as file:
        return [sample['pred_instances']['scores'] for sample in pickle.load(file)]


def test_leftovers_of_the_old_hook_change_nothing(tmp_path, detector_config):
    """The plain names hold the averages; the copies under ``ema_*`` are left out."""
    cfg = Config.fromfile(detector_config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        state = MODELS.build(cfg.model).state_dict()
    weights = {k: torch.from_numpy(tensor_for(k, list(v.shape))) for k, v in state.items()}
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'plain.pth')
    copies = {f'ema_{k.replace(".", "_")}': torch.zeros_like(v) for k, v in weights.items()}
    torch.save({'state_dict': {**weights, **copies}, 'meta': {}}, tmp_path / 'ema.pth')
    (tmp_path / 'ema.py').write_text(EMA.format(base=detector_config))
    expected = predictions(detector_config, tmp_path / 'plain.pth', tmp_path / 'a')
    for i, config in enumerate((detector_config, tmp_path / 'ema.py')):
        found = predictions(config, tmp_path / 'ema.pth', tmp_path / f'b{i}')
        assert len(found) == 2
        for one, other in zip(found, expected, strict=True):
            assert len(one) > 0
            assert torch.equal(one, other)

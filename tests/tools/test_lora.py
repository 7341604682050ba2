"""LoRA in a detector and a segmentor: training, merging, testing what was merged."""

import pytest
import torch
from tool_runner import load_tool, run_tool
from torch.testing import assert_close

from internimage_mm.checkpoint import read_checkpoint
from internimage_mm.commands import load_config
from internimage_mm.commands.inference import load_model
from internimage_mm.training import build_model

RANK, ALPHA = 2, 6
LAYERS = ('input_proj', 'output_proj', 'fc1', 'fc2')


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_train_merge_and_test(kind, request, tmp_path):
    plain_config = request.getfixturevalue(f'{kind}_config')
    base = tmp_path / 'base.pth'
    model = load_model_untrained(plain_config)
    torch.save({'state_dict': model.state_dict()}, base)
    config = tmp_path / 'lora.py'
    config.write_text(
        f"_base_ = '{plain_config}'\n"
        f"model = dict(backbone=dict(type='LoRAInternImage', rank={RANK}, alpha={ALPHA}))\n"
        f"load_from = '{base}'\noptim_wrapper = dict(optimizer=dict(lr=0.01))\n"
    )
    run_tool('train', config, '--work-dir', tmp_path)
    checkpoint, merged = tmp_path / 'iter_2.pth', tmp_path / 'merged.pth'
    load_tool('merge_lora').main([str(config), str(checkpoint), str(merged)])

    before, trained, after = (
        read_checkpoint(str(file))['state_dict'] for file in (base, checkpoint, merged)
    )
    assert before.keys() == after.keys() == {k for k in trained if '.lora_' not in k}
    changed = 0
    for name in (k for k in before if k.startswith('backbone.')):
        assert torch.equal(trained[name], before[name]), name
        layer = name.removesuffix('.weight')
        if layer.endswith(LAYERS) and name != layer:
            a, b = (trained[f'{layer}.lora_{x}'].double() for x in 'AB')
            expected = before[name].double() + ALPHA / RANK * b @ a
            assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-8)
            changed += not torch.equal(after[name], before[name])
        else:
            assert torch.equal(after[name], before[name]), name
    assert changed == 4 * 5

    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = (
            load_model(load_config(str(c)), str(f)).backbone(images)
            for c, f in ((plain_config, merged), (config, checkpoint))
        )
    assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    run_tool('test', plain_config, merged, '--work-dir', tmp_path / 'test')


def load_model_untrained(config):
    torch.manual_seed(0)
    model = build_model(load_config(str(config)))
    model.init_weights()
    return model


def test_merging_needs_lora(segmentor_config, segmentor_run, tmp_path):
    with pytest.raises(SystemExit, match='is no LoRAInternImage'):
        load_tool('merge_lora').main(
            [str(segmentor_config), str(segmentor_run / 'iter_2.pth'), str(tmp_path / 'out.pth')]
        )

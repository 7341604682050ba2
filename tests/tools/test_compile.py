"""Training with blocks that torch.compile compiles."""

import copy

import pytest
import torch
from backbones.helpers import tiny, with_golden_weights
from torch._dynamo.utils import counters

from internimage_mm.training.compilation import _DropPath, compile_blocks

from .conftest import run_tool

# A quick compiler, which writes no C++.
COMPILED = """
_base_ = '{base}'
custom_hooks = [dict(type='CompileBlocksHook', backend='aot_eager')]
"""


@pytest.mark.parametrize('drop_path_rate', [0, 0.2])
def test_one_program_for_each_stage(tmp_path, segmentor_config, segmentor_run, drop_path_rate):
    config = tmp_path / 'config.py'
    config.write_text(COMPILED.format(base=segmentor_config))
    torch.compiler.reset()
    counters.clear()
    options = [f'model.backbone.drop_path_rate={drop_path_rate}', 'train_cfg.val_interval=1']
    run_tool('train', config, '--work-dir', tmp_path, options=options)
    assert counters['stats']['unique_graphs'] == 4
    assert not counters['graph_break']
    found, expected = (
        torch.load(folder / 'iter_2.pth', weights_only=False)['state_dict']
        for folder in (tmp_path, segmentor_run)
    )
    assert found.keys() == expected.keys()


def test_compiled_blocks_compute_the_same():
    """In float64, since the points start on pixels, where a gradient jumps with the last bit."""
    eager = with_golden_weights(tiny(drop_path_rate=0.0)).double()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled, backend='aot_eager')
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    results = []
    for model in (eager, compiled):
        features = model.train()(image)
        sum((feature**2).mean() for feature in features).backward()
        results.append((features, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])


def test_drop_path():
    output = _DropPath(torch.tensor(0.75))(torch.ones(4000, 2, 1))
    assert output.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert (output[:, 0] == output[:, 1]).all()
    assert output.mean() == pytest.approx(1, abs=0.05)

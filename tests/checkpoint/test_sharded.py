"""The folder of a sharded training's checkpoint as untrusted input."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from internimage_mm.checkpoint import CheckpointError, read_checkpoint
from internimage_mm.checkpoint.reader import TRAINING_STATE


class Code:
    def __reduce__(self):
        return exec, ('raise SystemExit("code of a checkpoint ran")',)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_metadata_runs_no_code(tmp_path):
    weights = {'a': torch.rand(3, 4), 'b': torch.arange(3), 'c': torch.rand(2).bfloat16()}
    dcp.save({'state_dict': weights, 'n': 5}, checkpoint_id=tmp_path, no_dist=True)
    torch.save({'meta': {}}, tmp_path / TRAINING_STATE)
    torch.testing.assert_close(read_checkpoint(tmp_path)['state_dict'], weights)

    (tmp_path / '.metadata').write_bytes(pickle.dumps(Code()))
    with pytest.raises(CheckpointError, match=r'\.metadata uses builtins\.exec, which is refused'):
        read_checkpoint(tmp_path)

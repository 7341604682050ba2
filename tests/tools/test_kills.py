"""Trainings that are killed, and resumed on other numbers of processes, end as one left alone.

Only with ``SCALE_TESTS=all``: three kills take minutes.
"""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from training_hooks import recorded_losses

from internimage_mm.checkpoint import read_checkpoint
from internimage_mm.data import make_mini_ade20k

from .test_equals_one_process import LONG, training_config, training_hooks  # noqa: F401
from .test_several_processes import start

pytestmark = pytest.mark.skipif(not LONG, reason='takes minutes; SCALE_TESTS=all does it')
ITERATIONS = 20
KINDS = ('one, which torchrun starts again', 'all', 'all, during a save', 'SIGTERM')


class Training:
    def __init__(self, config, work_dir, processes, shard, interval=1, **environment):
        self.work_dir, self.log = work_dir, work_dir.with_suffix('.log')
        with open(self.log, 'w') as log:
            self.launcher = start(
                'dist_train.sh', config, processes, '--resume', '--work-dir', work_dir, *shard,
                '--cfg-options', f'train_dataloader.batch_size={4 // processes}',
                f'train_dataloader.dataset.data_root={config.parent / "data"}',
                'default_hooks.checkpoint.max_keep_ckpts=2',
                f'default_hooks.checkpoint.interval={interval}',
                stdout=log, stderr=log, **environment,
            )  # fmt: skip

    def finish(self):
        assert self.launcher.wait() == 0, self.log.read_text()[-3000:]

    def wait_for_iterations(self, starts=1):
        """Of the last of so many starts; returns the number of the newest."""
        while True:
            _, *later = self.log.read_text().split('Checkpoints will be saved to')
            if len(later) >= starts and (found := self.iterations(later[-1])):
                return found[-1]
            assert self.launcher.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def iterations(self, text):
        return [int(number) for number in re.findall(r'Iter\(train\) \[ *(\d+)/', text)]

    def kill(self, kind):
        """Kill it after some iterations; returns how many it had made."""
        self.wait_for_iterations()
        time.sleep(random.uniform(0, 1))
        launcher = self.launcher.pid
        processes = Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
        if kind == KINDS[0]:
            os.kill(int(processes[-1]), signal.SIGKILL)
            self.wait_for_iterations(starts=2)
        if kind == KINDS[2]:
            while not list(self.work_dir.glob('*.unfinished')):
                pass
        if kind in KINDS[1:3]:
            for pid in (launcher, *processes):
                os.kill(int(pid), signal.SIGKILL)
        self.launcher.terminate()
        self.launcher.wait()
        return max(self.iterations(self.log.read_text()))


def newest_checkpoint(work_dir):
    """Its iteration. Everything that has the name of one can be read."""
    found = [int(path.stem[5:]) for path in work_dir.glob('iter_*.pth')]
    for iteration in found:
        checkpoint = read_checkpoint(work_dir / f'iter_{iteration}.pth')
        assert checkpoint['meta']['iter'] == iteration
        assert len(recorded_losses(checkpoint)['loss']) == iteration
    return max(found)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('shard', [[], ['--shard']], ids=['whole', 'shards'])
def test_kills(tmp_path, segmentor_config, shard, seed):
    random.seed(seed)
    make_mini_ade20k(tmp_path / 'data', num_train=10, num_val=2, seed=0)
    config = training_config('UPerNet', ITERATIONS, None, segmentor_config, tmp_path)
    Training(config, tmp_path / 'left_alone', 2, shard, interval=ITERATIONS).finish()
    killed = tmp_path / 'killed'
    for i, processes in enumerate((2, 1, 2)):
        kind = KINDS[(i + seed) % len(KINDS)]
        training = Training(config, killed, processes, shard, MAX_RESTARTS='1')
        made = training.kill(kind)
        newest = newest_checkpoint(killed)
        print(f'{kind}, of {processes}: after iteration {made}, resumes from {newest}', flush=True)
        assert newest >= made - 1
    Training(config, killed, 4, shard).finish()
    assert not list(killed.glob('*.unfinished'))
    left, right = (
        read_checkpoint(folder / f'iter_{ITERATIONS}.pth')
        for folder in (killed, tmp_path / 'left_alone')
    )
    for name, a, b in (
        ('losses', recorded_losses(left), recorded_losses(right)),
        ('weights', left['state_dict'], right['state_dict']),
    ):
        print(f'{name} differ by {max(float((a[k] - b[k]).abs().max()) for k in b):.1e}')
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

"""Hooks for trainings of tests: without random numbers, and with records of losses and memory."""

import json
from pathlib import Path
from unittest import mock

import torch
from mmengine.dist import all_gather_object, all_reduce_dict, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.distributed.tensor import DTensor


def _same_points(*shape, rand=torch.rand, **kwargs):
    """As many random points for each object, and the same ones."""
    number, *others = shape[0] if isinstance(shape[0], tuple) else shape
    points = rand(*others, generator=torch.Generator().manual_seed(0))
    return points.expand(number, *others).clone()


@HOOKS.register_module()
class WithoutChance(Hook):
    """The first samples in place of random ones; records the losses as means over all processes.

    They are scalars of the message hub, which is part of checkpoints: ``'mean/loss'`` and so on.
    """

    def before_train(self, runner):
        self.patches = [
            mock.patch('torch.rand', _same_points),
            mock.patch('torch.randperm', lambda n, **kwargs: torch.arange(n)),
        ]
        for patch in self.patches:
            patch.start()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        losses = {name: value.detach() for name, value in outputs.items() if 'loss' in name}
        all_reduce_dict(losses, op='mean')
        for name, value in losses.items():
            runner.message_hub.update_scalar(f'mean/{name}', float(value))

    def after_train(self, runner):
        for patch in self.patches:
            patch.stop()


def recorded_losses(checkpoint):
    """Name to the losses of all iterations."""
    scalars = checkpoint['message_hub']['log_scalars']
    return {
        name.removeprefix('mean/'): torch.from_numpy(buffer.data[0])
        for name, buffer in scalars.items()
        if name.startswith('mean/')
    }


def _bytes(tensors):
    """Of the memory behind tensors; of those that are divided, in this process."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = [t.untyped_storage() for t in local]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@HOOKS.register_module()
class RecordShares(Hook):
    """Writes ``shares.json`` into the work dir: for each process, the bytes that it has."""

    gradients = 0

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        self.gradients = _bytes(p.grad for p in parameters if p.grad is not None)

    def after_train(self, runner):
        parameters = list(runner.model.parameters())
        states = runner.optim_wrapper.optimizer.state.values()
        share = {
            'whole model': sum(p.numel() * p.element_size() for p in parameters),
            'parameters': _bytes(parameters),
            'gradients': self.gradients,
            'states': _bytes(value for state in states for value in state.values()),
        }
        shares = all_gather_object(share)
        if is_main_process():
            Path(runner.work_dir, 'shares.json').write_text(json.dumps(shares))


@HOOKS.register_module()
class Stop(Hook):
    """Ends the process when everything is loaded."""

    def before_train(self, runner):
        raise SystemExit(0)

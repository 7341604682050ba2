"""What one of several processes does; in a file of its own, which spawned processes can import."""

import faulthandler
from datetime import timedelta

import torch
from backbones.helpers import images, tiny, with_golden_weights
from torch import nn

SMALL = dict(depths=[1] * 4, layer_scale=1.0, drop_path_rate=0.0)


def gradients(model, outputs):
    model.zero_grad()
    sum((o * images(*o.shape, seed=k)).mean() for k, o in enumerate(outputs)).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def train_in_process(rank, store, result, seconds):
    """One of two processes: the gradients of image ``rank`` through DistributedDataParallel.

    After ``seconds`` it writes its stack to stderr and exits with status 1.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo',
        init_method=store,
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=seconds),
    )
    model = with_golden_weights(tiny(**SMALL)).eval()
    parallel = nn.parallel.DistributedDataParallel(model)
    grads = gradients(model, parallel(images(2, 3, 64, 64)[rank : rank + 1]))
    if rank == 0:
        torch.save(grads, result)
    # Neither leaves while the other may still be reading from it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

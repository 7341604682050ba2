"""Train InternImage-T with a small head on a device in bfloat16, and on the CPU in float32.

``tools/gpu_check.sh`` runs this. The model learns which pixels of random images are bright; both
runs start from the same weights and see the same images. It prints the losses, and fails if the
device does not learn as the CPU does.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from internimage_mm import create_model

BATCH, SIZE, STRIDE = 8, 64, 8


def train(device: str, dtype: torch.dtype, steps: int) -> list[float]:
    torch.manual_seed(0)
    backbone = create_model(
        'internimage_t', features_only=True, out_indices=(1,), drop_path_rate=0.0
    )
    model = nn.Sequential(backbone, nn.Conv2d(128, 2, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        images = torch.randn(BATCH, 3, SIZE // 8, SIZE // 8, generator=generator)
        images = functional.interpolate(images, size=SIZE, mode='bilinear')
        bright = functional.avg_pool2d(images.mean(1), STRIDE) > 0
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            scores = model[1](model[0](images.to(device))[0])
        loss = functional.cross_entropy(scores.float(), bright.long().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda')
    parser.add_argument('--steps', type=int, default=50)
    args = parser.parse_args()
    start = time.perf_counter()
    found = train(args.device, torch.bfloat16, args.steps)
    seconds = time.perf_counter() - start
    expected = train('cpu', torch.float32, args.steps)
    for step in sorted({0, *range(9, args.steps, 10), args.steps - 1}):
        print(f'step {step + 1:3}: loss {found[step]:.4f}, on the CPU {expected[step]:.4f}')
    tail = slice(-10, None)
    mean, wanted = (sum(losses[tail]) / len(losses[tail]) for losses in (found, expected))
    print(
        f'{args.steps} steps in bfloat16 on {args.device} in {seconds:.1f} s: first loss '
        f'{found[0]:.4f}, last {mean:.4f}; on the CPU in float32 {expected[0]:.4f}, {wanted:.4f}'
    )
    # Chaotic after some steps, so only the first loss and the mean of the last ones are compared.
    if not (abs(found[0] / expected[0] - 1) < 0.01 and abs(mean / wanted - 1) < 0.1):
        sys.exit('the losses differ')


if __name__ == '__main__':
    main()

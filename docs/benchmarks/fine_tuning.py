"""Compares ways of fine-tuning on the mini COCO data set: the table of docs/fine_tuning.md.

    python docs/benchmarks/fine_tuning.py work_dirs/demo/detection/train/epoch_3.pth

A detector of ``make demo`` is tuned for the negatives of the pictures. Times are of the processor,
so other work on the machine does not count. Memory is what ``tools/plan_memory.py`` plans for 8
images of 800x1344.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

from internimage_mm.training import build_model
from internimage_mm.training.memory import measure_step

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/quickstart/mask-rcnn_internimage-nano_mini-coco.py'
WAYS = {
    'nothing': None,
    'everything': {},
    'stem and two stages frozen': dict(frozen_stages=2),
    'LoRA, rank 8, alpha 32': dict(type='LoRAInternImage', rank=8, alpha=32, norm_eval=True),
    'heads only': dict(frozen_stages=4),
}


def run(tool, *args):
    """Run a tool; returns its processor time in seconds."""
    process = subprocess.Popen([sys.executable, '-W', 'ignore', ROOT / 'tools' / tool, *args])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'{tool} failed')
    return usage.ru_utime + usage.ru_stime


def measure(backbone, folder, args):
    """Train and test one way; its row of the table."""
    cfg = Config.fromfile(CONFIG)
    cfg.load_from = str(args.checkpoint.resolve())
    # Negatives: the pictures for which the checkpoint is to be tuned.
    cfg.model.data_preprocessor.std = [-std for std in cfg.model.data_preprocessor.std]
    cfg.train_cfg.update(max_epochs=1, val_begin=2)
    cfg.param_scheduler[0].end, cfg.param_scheduler[1].T_max = 10, 1
    cfg.train_dataloader.dataset.indices = args.images
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    folder.mkdir(parents=True, exist_ok=True)
    plain, config, checkpoint = (folder / name for name in ('plain.py', 'config.py', 'epoch_1.pth'))
    cfg.dump(plain)
    row = dict(backbone=0, all=0, memory=0, seconds=0)
    if backbone is None:
        checkpoint = args.checkpoint
    else:
        cfg.model.backbone.update(backbone)
        cfg.dump(config)
        row['seconds'] = run('train.py', config, '--work-dir', folder)
        row['memory'] = measure_step(cfg, 8, 800, 1344, False, False).peak(1, False) / 2**30
        model = build_model(cfg)
        for key, part in (('backbone', model.backbone), ('all', model)):
            row[key] = sum(p.numel() for p in part.parameters() if p.requires_grad)
        if cfg.model.backbone.type == 'LoRAInternImage':
            run('merge_lora.py', config, checkpoint, folder / 'merged.pth')
            checkpoint = folder / 'merged.pth'
    run('test.py', plain, checkpoint, '--work-dir', folder / 'test')
    (result,) = (folder / 'test').glob('*/*.json')
    metrics = json.loads(result.read_text())
    return dict(**row, box=metrics['coco/bbox_mAP'], mask=metrics['coco/segm_mAP'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--images', type=int, default=480, help='images to train on, once')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/fine_tuning'))
    args = parser.parse_args()
    rows = {
        way: measure(backbone, args.work_dir / str(i), args)
        for i, (way, backbone) in enumerate(WAYS.items())
    }
    print('| trained | in the backbone | of all | memory, GiB | time, s | box AP | mask AP |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for way, row in rows.items():
        print(
            f'| {way} | {row["backbone"]:,} | {row["all"]:,} | {row["memory"]:.1f} '
            f'| {row["seconds"]:.0f} | {row["box"]:.3f} | {row["mask"]:.3f} |'
        )


if __name__ == '__main__':
    main()

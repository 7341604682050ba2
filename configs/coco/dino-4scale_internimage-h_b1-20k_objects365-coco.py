# Training starts from an Objects365 model, which the official release does not publish for this
# detector: give one with --cfg-options load_from=CHECKPOINT.
_base_ = [
    '../_base_/models/dino-4scale_internimage-h.py',
    '../_base_/datasets/coco_detection_2000x1000.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

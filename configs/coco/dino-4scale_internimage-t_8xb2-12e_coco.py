_base_ = [
    '../_base_/models/dino-4scale_internimage.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_dino_12e.py',
    '../_base_/default_runtime_det.py',
]

model = dict(test_cfg=dict(max_per_img=100))

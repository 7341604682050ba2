_base_ = [
    '../_base_/models/dino-4scale_cb-internimage-h.py',
    '../_base_/datasets/openimages_detection.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

model = dict(bbox_head=dict(num_classes=601))
tta_model = dict(max_per_img=300)  # as without augmentation

train_cfg = dict(max_iters=100000, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000, save_best='openimages/AP50'))

load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'dino_4scale_cbinternimage_h_objects365_80classes.pth'
)

_base_ = [
    '../_base_/models/dino-4scale_cb-internimage-h.py',
    '../_base_/datasets/lvis_v1_detection.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

model = dict(bbox_head=dict(num_classes=1203))
tta_model = dict(max_per_img=300)  # as the benchmark allows

train_cfg = dict(max_iters=80000, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=10, save_best=None))

load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'dino_4scale_cbinternimage_h_objects365_80classes.pth'
)

_base_ = [
    '../_base_/models/dino-4scale_cb-internimage-h.py',
    '../_base_/datasets/voc0712_detection.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

model = dict(bbox_head=dict(num_classes=20))
tta_model = dict(max_per_img=300)  # as without augmentation

train_cfg = dict(val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=0.00005))
default_hooks = dict(checkpoint=dict(interval=500, save_best='pascal_voc/mAP'))

load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'dino_4scale_cbinternimage_h_objects365_20classes.pth'
)

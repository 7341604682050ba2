_base_ = [
    '../_base_/models/dino-4scale_cb-internimage-h.py',
    '../_base_/datasets/coco_detection_2000x1000.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'dino_4scale_cbinternimage_h_objects365_80classes.pth'
)

# The same training, tested on the 5000 images of minival (those of COCO val2017).
_base_ = './dino-4scale_cb-internimage-h_b1-80k_objects365-lvis-v1.py'

val_dataloader = dict(dataset=dict(ann_file='annotations/lvis_v1_minival.json'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/lvis_v1/annotations/lvis_v1_minival.json')
test_evaluator = val_evaluator

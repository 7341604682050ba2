# DINO on two InternImage-H: the assisting one feeds the lead one. Training has a loss on the
# features of each (assisting: weight 0.5), testing uses the lead one.
_base_ = './dino-4scale_internimage-h.py'

model = dict(
    type='CBDINO',
    backbone=dict(type='CBInternImage', out_indices=[(0, 1, 2, 3), (1, 2, 3)]),
    neck=dict(type='CBChannelMapper'),
    bbox_head=dict(type='CBDINOHead', cb_first_weight=0.5),
)

# Faster R-CNN on a very small InternImage, from scratch, for small images and objects from about
# 10 pixels. Trains on a CPU.
_base_ = './faster-rcnn_internimage-t.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='InternImage',
        channels=32,
        depths=[1, 1, 2, 1],
        groups=[2, 4, 8, 16],
        mlp_ratio=2.0,
        drop_path_rate=0.0,
    ),
    neck=dict(
        in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)

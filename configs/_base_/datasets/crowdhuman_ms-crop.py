# CrowdHuman in COCO format (see configs/crowdhuman/README.md), full-body boxes. The private
# dataset class of the official release reads it as CocoDataset does: boxes may leave the image,
# `iscrowd` marks regions that are neither trained on nor counted as errors.
_base_ = './coco_instance_ms-crop.py'

data_root = 'data/CrowdHuman/'
metainfo = dict(classes=('person',))

train_pipeline = _base_.train_pipeline
train_pipeline[1].pop('with_mask')
test_pipeline = _base_.test_pipeline
test_pipeline[2].pop('with_mask')

train_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/annotation_train.json',
        data_prefix=dict(img='Images/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/annotation_val.json',
        data_prefix=dict(img='Images/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='CocoMetric',
    ann_file=data_root + 'annotations/annotation_val.json',
    metric='bbox',
)
test_evaluator = val_evaluator

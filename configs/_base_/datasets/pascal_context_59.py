# Pipelines and evaluation are those of ADE20K in other sizes.
_base_ = './ade20k.py'

dataset_type = 'PascalContextDataset59'
data_root = 'data/VOCdevkit/VOC2010/'

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(520, 520))
train_pipeline[3].update(crop_size=(480, 480))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(4096, 520))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=(int(4096 * r), int(520 * r)), keep_ratio=True)
    for r in _base_.img_ratios
]

train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/SegmentationContext/train.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/SegmentationContext/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# Pipelines and evaluation are those of ADE20K in other sizes.
_base_ = './ade20k.py'

dataset_type = 'NYUDepthV2Dataset'
data_root = 'data/nyu_depth_v2/'

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(2048, 512))
train_pipeline[3].update(crop_size=(480, 480))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(640, 480))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=(int(640 * r), int(480 * r)), keep_ratio=True)
    for r in _base_.img_ratios
]

train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='train.txt',
        data_prefix=dict(img_path='image', seg_map_path='label40'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='test.txt',
        data_prefix=dict(img_path='image', seg_map_path='label40'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

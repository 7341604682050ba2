# iNaturalist 2018 at 384, with the date and place of each picture.
_base_ = './imagenet_384.py'

# With the metadata among the keys.
pack = dict(
    type='PackInputs',
    meta_keys=(
        *('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'),
        *('flip_direction', 'temporal_info', 'spatial_info'),
    ),
)
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline[1:-1], pack]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline[1:-1], pack]

train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='INaturalist2018',
        data_root='data/inat2018',
        ann_file='train2018.json',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='INaturalist2018',
        data_root='data/inat2018',
        ann_file='val2018.json',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

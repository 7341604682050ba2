# Pipelines and evaluation are those of ADE20K, but for labels that start at 0.
_base_ = './ade20k_896x896.py'

dataset_type = 'COCOStuffDataset'
data_root = 'data/coco_stuff164k'

train_pipeline = _base_.train_pipeline
train_pipeline[1].pop('reduce_zero_label')
test_pipeline = _base_.test_pipeline
test_pipeline[3].pop('reduce_zero_label')
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][3][0].pop('reduce_zero_label')

train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

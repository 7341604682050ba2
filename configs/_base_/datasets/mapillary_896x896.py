_base_ = './mapillary.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(ratio_range=(0.5, 2.0))
train_pipeline[4].update(crop_size=(896, 896))
test_pipeline = _base_.test_pipeline
test_pipeline.insert(2, dict(type='ResizeToMultiple', size_divisor=32))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'].insert(1, [dict(type='ResizeToMultiple', size_divisor=32)])

train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(dataset, pipeline=train_pipeline)
            for dataset in _base_.train_dataloader.dataset.datasets
        ]
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# ImageNet-1k for fine-tuning at 384, without erasing.
_base_ = './imagenet_224.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=384)
train_pipeline = [step for step in train_pipeline if step['type'] != 'RandomErasing']
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=384)
test_pipeline[2].update(crop_size=384)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Your label maps (docs/your_data.md). Change the first part; the models in this folder follow it.
# A label map is a PNG of the size of its image: 0 the first class, 1 the second, ..., 255 nothing.
classes = ('wall', 'sky', 'ground', 'water', 'circle', 'square', 'triangle', 'star')
data_root = 'data/mine'
train_images, train_labels = 'images/training', 'annotations/training'
val_images, val_labels = 'images/validation', 'annotations/validation'
image_suffix = '.jpg'
reduce_zero_label = False  # True: 0 is nothing, 1 the first class, as in ADE20K
crop_size = (128, 128)
batch_size = 8
max_iters = 1500

# ---- follows from it ----------------------------------------------------------------------------
num_classes = len(classes)
dataset = dict(
    type='BaseSegDataset',
    metainfo=dict(classes=classes),
    data_root=data_root,
    img_suffix=image_suffix,
    seg_map_suffix='.png',
    reduce_zero_label=reduce_zero_label,
)
load_labels = dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load_labels,
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    load_labels,
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path=train_images, seg_map_path=train_labels),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path=val_images, seg_map_path=val_labels),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, begin=0, end=max_iters, eta_min=0.0, by_epoch=False),
]

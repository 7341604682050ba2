# Mapillary Vistas, training and validation part together, with the 19 classes of Cityscapes.
# Testing is on Cityscapes val.
_base_ = './cityscapes.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='MapillaryToCityscapes'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 1024), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='MapillaryCityscapesDataset',
                data_root='data/Mapillary/',
                data_prefix=dict(img_path=f'{part}/images', seg_map_path=f'{part}/labels'),
                pipeline=train_pipeline,
            )
            for part in ('training', 'validation')
        ],
    )
)

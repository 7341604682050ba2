# Fine training images plus the coarsely annotated ones with refined labels (refinement_final).
_base_ = './cityscapes.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='CityscapesDataset',
                data_root='data/cityscapes/',
                data_prefix=dict(img_path=img_path, seg_map_path=seg_map_path),
                pipeline=_base_.train_pipeline,
            )
            for img_path, seg_map_path in (
                ('leftImg8bit/train', 'gtFine/train'),
                ('leftImg8bit/train_extra', 'refinement_final/train_extra'),
            )
        ],
    )
)

# The same about the larger test scale.
_base_ = './tta_1333x800.py'

tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in ((1600, 800), (2000, 1000), (2400, 1200))
]

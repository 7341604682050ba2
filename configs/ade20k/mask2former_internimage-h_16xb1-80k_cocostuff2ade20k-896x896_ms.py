# The same model, tested with flip at five scales around 896. tools/test.py does so without --tta.
_base_ = './mask2former_internimage-h_16xb1-80k_cocostuff2ade20k-896x896.py'

test_with_tta = True
img_ratios = [768 / 896, 832 / 896, 1.0, 960 / 896, 1024 / 896]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=(int(3584 * r), int(896 * r)), keep_ratio=True) for r in img_ratios
]

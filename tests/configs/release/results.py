"""The published numbers of a metafile in the terms of the official table."""

_METRICS = {
    'box AP': 'box_mAP',
    'mask AP': 'mask_mAP',
    'mAP': 'box_mAP',
    'AP50': 'box_mAP',
    'mIoU': 'mIoU_ss',
    'mIoU(ms+flip)': 'mIoU_ms',
    'Top 1 Accuracy': 'top1',
}
_UNITS = {'K': 1e3, 'M': 1e6, 'G': 1e9, 'B': 1e9}


def abbreviated(number, like):
    """``number`` as the table writes it in ``like`` ('1094M', '2.18B'), or with 4 digits."""
    digits, unit = like[:-1], like[-1]
    decimals = len(digits.partition('.')[2])
    return f'{number / _UNITS[unit]:.{decimals}f}{unit}'


def results(model, expected):
    """What a model of a metafile says about the numbers that the table has for it."""
    described = {
        _METRICS[metric]: value
        for result in model.get('Results') or []
        for metric, value in result['Metrics'].items()
        if metric in _METRICS
    }
    metadata = model['Metadata']
    for key, field in (('params', 'Parameters'), ('flops', 'FLOPs')):
        if key in expected and field in metadata:
            described[key] = abbreviated(metadata[field], expected[key])
    if 'Weights' in model:
        described['checkpoint'] = model['Weights']
    return described

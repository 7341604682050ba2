"""The settings of the official configs, and which of our configs stands for which of them."""

import functools
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / 'tests' / 'golden'

_TABLE = yaml.safe_load((GOLDEN / 'model_zoo.yaml').read_text())
COUNTS = _TABLE['meta']['counts']
ENTRIES = {
    entry['official_config']: entry
    for tree in ('detection', 'segmentation', 'classification')
    for dataset in _TABLE[tree].values()
    for entry in dataset.values()
}
"""Official config -> its settings."""

DETECTION = [path for path in ENTRIES if path.startswith('detection/')]
SEGMENTATION = [path for path in ENTRIES if path.startswith('segmentation/')]
CLASSIFICATION = [path for path in ENTRIES if path.startswith('classification/')]

_CODE = re.compile(r'https://github\.com/OpenGVLab/InternImage/blob/[0-9a-f]{40}/(.+)')


def official_config(model):
    """The official config that a metafile's model stands for, as a path; None if there is none."""
    match = _CODE.fullmatch(model.get('Converted From', {}).get('Code', ''))
    return match and match[1]


@functools.cache
def models():
    """Official config -> the model of a metafile that stands for it."""
    found = {}
    for path in sorted((ROOT / 'configs').glob('*/metafile.yml')):
        for model in yaml.safe_load(path.read_text())['Models']:
            if official := official_config(model):
                assert official not in found, f'{official}: two of our configs stand for it'
                found[official] = model
    return found


def resize_scale(size):
    """A resize scale as (long, short): with keep_ratio the order means nothing."""
    return [max(size), min(size)]


def canonical(path):
    """The settings of one official config with one notation for what has several."""
    entry = dict(ENTRIES[path])
    entry.pop('official_config')
    if path.startswith('classification/'):
        # Without remarks where they follow a setting.
        entry['amp'] = entry['amp'].partition(':')[0]
        if entry['pretrained']:
            entry['pretrained'] = entry['pretrained'].rpartition('/')[2]
        return entry
    # The rest of the schedule is the curve of the learning rate, which is compared by its values.
    entry['schedule'] = {k: v for k, v in entry['schedule'].items() if k.startswith('max_')}
    dataset = dict(entry['dataset'])
    if dataset.get('filter_empty_gt') == 'default (True)':
        dataset['filter_empty_gt'] = True
    for key in ('train_ann', 'test_ann'):
        if key in dataset:
            dataset[key] = _below_data(dataset[key])
    entry['dataset'] = dataset
    entry['evaluation'] = {'interval': 1, **entry['evaluation']}
    entry['train_pipeline'] = _pipeline(entry['train_pipeline'])
    return entry


def _below_data(path):
    if isinstance(path, list):
        return [_below_data(one) for one in path]
    return path.removeprefix('./').removeprefix('data/')


def _pipeline(pipeline):
    terms = []
    for term in pipeline:
        ((kind, value),) = term.items()
        if kind == 'resize' and 'scales' in value:
            value = {**value, 'scales': [resize_scale(s) for s in value['scales']]}
        elif kind == 'one_of_branches':
            value = [_pipeline(branch) for branch in value]
        terms.append({kind: value})
    return terms

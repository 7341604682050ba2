"""Every config against the official release, setting by setting.

``golden/model_zoo.yaml`` holds the settings of the 67 official configs, resolved. Each of our
configs is put into the terms of that table (``release``) and compared leaf by leaf; what differs
must be explained in ``explained_differences.yml``.
"""

import functools
import json

import numpy as np
import pytest
from release import ours, zoo
from release.compare import Explanations, differences, listing
from release.describe import describe
from release.training_terms import new_curve, official_curve

DETSEG = zoo.DETECTION + zoo.SEGMENTATION
# Ours alone: the quickstart, and the pre-training of which the release has only the weights.
NO_OFFICIAL_CONFIG = {'_base_', 'objects365', 'quickstart'}
# Shorter epochs than COCO's 7330 iterations: enough for warm-up and milestones.
EPOCH_LENGTH = 600


def test_every_official_config_has_exactly_one_of_ours():
    counts = zoo.COUNTS
    assert len(zoo.ENTRIES) == counts['all'] == 67
    assert len(zoo.DETECTION) == counts['detection']['total']
    assert len(zoo.SEGMENTATION) == counts['segmentation']['total']
    assert set(zoo.models()) == set(zoo.ENTRIES)
    configs = [model['Config'] for model in zoo.models().values()]
    assert sorted(configs) == sorted(
        path.relative_to(zoo.ROOT).as_posix()
        for path in (zoo.ROOT / 'configs').glob('*/*.py')
        if path.parent.name not in NO_OFFICIAL_CONFIG
    )


@functools.cache
def differences_of(official):
    expected = zoo.canonical(official)
    # The curve of the learning rate is compared by its values, below.
    schedule = expected['schedule']
    expected['schedule'] = {k: v for k, v in schedule.items() if k in ('max_epochs', 'max_iters')}
    cfg = ours.load(official)
    with ours.default_scope(cfg):
        model = ours.build_on_meta(official)
        return differences(expected, describe(cfg, model, zoo.models()[official], expected))


@pytest.mark.parametrize('official', DETSEG)
def test_settings(official):
    left = Explanations('table').unexplained(official, differences_of(official))
    assert not left, '\n' + listing(left)


def test_every_explanation_is_needed():
    explanations = Explanations('table')
    for official in DETSEG:
        explanations.unexplained(official, differences_of(official))
    assert explanations.unused() == []


@pytest.mark.parametrize('official', DETSEG)
def test_learning_rate_at_every_iteration(official):
    cfg, entry = ours.load(official), zoo.ENTRIES[official]
    schedule, base_lr = entry['schedule'], entry['optimizer']['lr']
    length = schedule.get('max_iters') or EPOCH_LENGTH * schedule['max_epochs']
    epoch = EPOCH_LENGTH if 'max_epochs' in schedule else length
    expected = official_curve(base_lr, schedule, length, epoch)
    actual = new_curve(json.dumps(cfg.param_scheduler), base_lr, length, epoch)
    # The schedulers multiply factors step by step: 160000 roundings, measured 4e-12.
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=0)

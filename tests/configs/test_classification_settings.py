"""Every classification config against the official release, setting by setting."""

import functools
import gzip
import json

import numpy as np
import pytest
from mmengine.optim import build_optim_wrapper
from release import classification_terms, ours, zoo
from release.compare import Explanations, differences, listing
from release.training_terms import new_curve, official_cosine_curve

EPOCH_LENGTH = 50
COUNTS = json.loads(
    gzip.decompress((zoo.GOLDEN / 'optimizer' / 'param_counts_classification.json.gz').read_bytes())
)


@functools.cache
def differences_of(official):
    expected = classification_terms.canonical(zoo.canonical(official))
    cfg = ours.load(official)
    with ours.default_scope(cfg):
        model = ours.build_on_meta(official)
        # Without autocast, which needs a GPU: the parameter groups are the same.
        wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
        wrapper.pop('loss_scale', None)
        optimizer = build_optim_wrapper(model, wrapper).optimizer
        metafile_model = zoo.models()[official]
        described = classification_terms.describe(cfg, model, optimizer, metafile_model, expected)
    return differences(expected, described)


@pytest.mark.parametrize('official', zoo.CLASSIFICATION)
def test_settings(official):
    left = Explanations('classification').unexplained(official, differences_of(official))
    assert not left, '\n' + listing(left)


def test_every_explanation_is_needed():
    explanations = Explanations('classification')
    for official in zoo.CLASSIFICATION:
        explanations.unexplained(official, differences_of(official))
    assert explanations.unused() == []


@pytest.mark.parametrize('official', zoo.CLASSIFICATION)
def test_parameter_count(official):
    # The configs with and without layer decay have the same model.
    name = official.removeprefix('classification/configs/').removeprefix('without_lr_decay/')
    total = sum(param.numel() for param in ours.build_on_meta(official).parameters())
    counted = COUNTS[name]['total']
    if 'inat18' not in official:  # counted without its metadata branch
        assert total == counted
    assert zoo.models()[official]['Metadata']['Parameters'] == total


@pytest.mark.parametrize('official', zoo.CLASSIFICATION)
def test_learning_rate_at_every_iteration(official):
    cfg, entry = ours.load(official), zoo.ENTRIES[official]
    factor = cfg.auto_scale_lr.base_batch_size / 512
    schedule = dict(entry['schedule'])
    for key in ('warmup_lr', 'min_lr'):
        schedule[key] *= factor
    lr = entry['optimizer']['base_lr'] * factor
    length = EPOCH_LENGTH * schedule['epochs']
    expected = official_cosine_curve(lr, schedule, length, EPOCH_LENGTH)
    schedulers = json.dumps(classification_terms.schedulers(cfg))
    with ours.default_scope(cfg):
        actual = new_curve(schedulers, lr, length, EPOCH_LENGTH)
    # The official code sets the rate of iteration t + 1 to the value for t (it calls
    # step_update(t) after iteration t); here iteration t has the value for t.
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-20)

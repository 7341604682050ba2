"""One of our configs as an entry of the official table."""

from . import data_terms, model_terms, training_terms
from .results import results


def describe(cfg, model, metafile_model, expected):
    """All terms of the table for a detector or segmentor.

    Args:
        cfg: Our config.
        model: What it builds.
        metafile_model: Its entry in the metafile.
        expected: The official settings, in canonical form; they say which constructor arguments
            of the backbone are compared and how numbers are rounded.
    """
    described = {
        'task': model_terms.task(cfg),
        'framework': model_terms.framework(cfg),
        'dataset': data_terms.dataset(cfg),
        'backbone': model_terms.backbone(cfg, expected['backbone']),
        'neck': model_terms.neck(cfg),
        'heads': model_terms.heads(cfg, model),
        'train_pipeline': data_terms.train_pipeline(cfg),
        'test_pipeline': data_terms.test_pipeline(cfg),
        'optimizer': training_terms.optimizer(cfg, model),
        # The rest of the schedule is the curve of the learning rate, compared by its values.
        'schedule': training_terms.schedule_length(cfg),
        'batch': training_terms.batch(cfg),
        'ema': training_terms.ema(cfg),
        'fp16': training_terms.half_precision(cfg),
        'evaluation': data_terms.evaluation(cfg),
        'pretrained_backbone': model_terms.pretrained(cfg),
        'load_from': cfg.get('load_from'),
        'results': results(metafile_model, expected['results']),
    }
    if cfg.default_scope == 'mmseg':
        described['test_mode'] = dict(cfg.model.test_cfg)
    return described

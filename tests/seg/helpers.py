"""The three segmentors whose outputs the official code recorded, built from our configs."""

from golden_detseg import ROOT, meta
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from internimage_mm.checkpoint import fit_state_dict, read_checkpoint

CONFIGS = {
    'upernet_t': 'ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py',
    'segformer_l_like': (
        'cityscapes/segformer_internimage-l_8xb2-160k_mapillary2cityscapes-512x1024.py'
    ),
    'mask2former_h_like': (
        'ade20k/mask2former_internimage-h_16xb1-80k_cocostuff2ade20k-896x896.py'
    ),
}
CASES = list(CONFIGS)


def reduced_config(case):
    """Our config, with the reductions of the recorded model and nothing else changed."""
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[case])
    official = meta(case)['model']
    backbone = dict(official['backbone'])
    assert backbone.pop('core_op') == 'DCNv3_pytorch'
    head = official['decode_head']
    # Merging keeps what our config has beyond the official arguments.
    options = {'backbone': backbone, 'decode_head': {'in_channels': head['in_channels']}}
    if case == 'mask2former_h_like':
        encoder, decoder = (
            part['transformerlayers']
            for part in (head['pixel_decoder']['encoder'], head['transformer_decoder'])
        )

        def sizes(official_layer):
            attention, ffn = official_layer['attn_cfgs'], official_layer['ffn_cfgs']
            return (
                {k: attention[k] for k in ('embed_dims', 'num_heads')},
                {k: ffn[k] for k in ('embed_dims', 'feedforward_channels')},
            )

        def num_feats(part):
            return {'num_feats': part['positional_encoding']['num_feats']}

        attention, ffn = sizes(encoder)
        decoder_attention, decoder_ffn = sizes(decoder)
        options['decode_head'].update(
            feat_channels=head['feat_channels'],
            out_channels=head['out_channels'],
            num_queries=head['num_queries'],
            pixel_decoder=dict(
                encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
                positional_encoding=num_feats(head['pixel_decoder']),
            ),
            positional_encoding=num_feats(head),
            transformer_decoder=dict(
                layer_cfg=dict(
                    self_attn_cfg=decoder_attention,
                    cross_attn_cfg=decoder_attention,
                    ffn_cfg=decoder_ffn,
                )
            ),
        )
    cfg.merge_from_dict({'model': options})
    official_scale = tuple(meta(case)['official_img_scale'][0])
    scale = tuple(meta(case)['test_pipeline_used'][1]['img_scale'])
    resize = cfg.test_pipeline[1]
    assert resize.type == 'Resize' and resize.scale == official_scale
    resize.scale = scale
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = cfg.test_pipeline
    resizes = cfg.tta_pipeline[1].transforms[0]
    ratios = [0.75, 1.0, 1.25]  # of the recorded multi-scale test
    recorded = [
        r
        for r in resizes
        if any(r.scale == tuple(int(s * x) for s in official_scale) for x in ratios)
    ]
    assert len(recorded) == 3
    for r, ratio in zip(recorded, ratios, strict=True):
        r.scale = tuple(int(s * ratio) for s in scale)
    cfg.tta_pipeline[1].transforms[0] = recorded
    return cfg


def build(cfg, checkpoint):
    """The model of a config with the weights of a checkpoint file, as the tools do it."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.load_state_dict(fit_state_dict(read_checkpoint(checkpoint), model, str(checkpoint)))
    return model.eval()

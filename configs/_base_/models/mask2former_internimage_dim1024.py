# The larger head: 1024 channels, 200 queries.
_base_ = './mask2former_internimage.py'

attention = dict(embed_dims=1024, num_heads=32)
ffn = dict(embed_dims=1024, feedforward_channels=4096)
model = dict(
    decode_head=dict(
        feat_channels=1024,
        out_channels=1024,
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
            positional_encoding=dict(num_feats=512),
        ),
        positional_encoding=dict(num_feats=512),
        transformer_decoder=dict(
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)
        ),
    )
)

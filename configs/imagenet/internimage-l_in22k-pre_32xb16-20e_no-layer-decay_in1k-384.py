_base_ = './internimage-l_in22k-pre_32xb16-20e_in1k-384.py'

# The official DCN_LR_MUL of 0.1 has no effect there without layer decay.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
)

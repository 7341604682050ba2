# The official release has this configuration twice, once in its folder without_lr_decay. They are
# the same: neither has layer decay.
_base_ = './internimage-t_8xb512_in1k-224.py'

# The same training and validation (on VOC 2007), tested on VOC 2012, whose test boxes are not
# public: the published number is from the evaluation server.
_base_ = './dino-4scale_cb-internimage-h_b1-20k_objects365-voc07.py'

test_dataloader = dict(
    dataset=dict(
        ann_file='VOC2012test/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2012test/'),
    )
)
test_evaluator = dict(eval_mode='area')

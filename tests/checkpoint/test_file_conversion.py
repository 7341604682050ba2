"""Checkpoint files converted on disk, in both directions."""

import os

import pytest
import torch
from checkpoint.helpers import MASK2FORMER, UPERNET, giant, official_shapes, small

from internimage_mm.checkpoint import CheckpointError, convert_file
from internimage_mm.commands import UserError

T, H = (f'internimage_{size}.yaml' for size in ('t_1k_224', 'h_22kto1k_640'))


def official_weights(name):
    return giant() if name == 'giant' else small(official_shapes(name))


def read(path):
    return torch.load(path, weights_only=True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


# One for each kind of container; test_convert.py has the names of all models.
@pytest.mark.parametrize('model', [UPERNET, 'giant', H])
def test_there_and_back_is_the_same_to_the_last_bit(tmp_path, model):
    weights = official_weights(model)
    key = 'model' if model == H else 'state_dict'
    rest = {'epoch': 299} if model == H else {'meta': {'epoch': 12, 'CLASSES': ('a', 'b')}}
    source, ours, back = (str(tmp_path / f'{name}.pth') for name in ('in', 'ours', 'back'))
    torch.save({key: weights, **rest}, source)
    convert_file(source, ours, 'ours')
    convert_file(ours, back, 'official')
    assert read(ours).keys() == {'state_dict', 'meta'}
    assert_same(read(back).pop(key), weights)
    assert {k: v for k, v in read(back).items() if k != key} == rest
    # Once more in the same direction changes nothing.
    again = str(tmp_path / 'again.pth')
    convert_file(ours, again, 'ours')
    assert_same(read(again)['state_dict'], read(ours)['state_dict'])
    assert read(again)['meta'] == read(ours)['meta']
    convert_file(back, again, 'official', overwrite=True)
    assert_same(read(again)[key], weights)


def test_report_of_a_detector(tmp_path):
    weights = giant()
    torch.save(
        {
            'state_dict': {
                **weights,
                **{f'ema_{k.replace(".", "_")}': v for k, v in list(weights.items())[:3]},
            },
            'meta': {},
            'optimizer': {'state': {}},
        },
        tmp_path / 'g.pth',
    )
    report = convert_file(str(tmp_path / 'g.pth'), str(tmp_path / 'ours.pth'), 'ours')
    text = '\n'.join(report)
    parts = 12 * 12
    unchanged = [
        k for k in weights if k.startswith(('backbone.', 'neck.', 'bbox_head.cls', 'bbox_head.reg'))
    ]
    renamed = len(weights) - parts - len(unchanged)
    assert report[0].endswith(
        f"g.pth: DINO with InternImage-G, {len(weights)} weights in 'state_dict'"
    )
    assert (
        f'renamed {renamed}, merged {parts} into 36, split 0 into 0, dropped 3, '
        f'unchanged {len(unchanged)}'
    ) in report[1]
    assert (
        '  bbox_head.transformer.decoder.layers.{i}.attentions.0.attn.{x} -> '
        'decoder.layers.{i}.self_attn.attn.{x} (24)'
    ) in report
    stem = 'bbox_head.transformer.encoder.layers.0.ffns.0.fc2_'
    assert (
        f'  {", ".join(f"{stem}{i}.weight" for i in range(4))} -> '
        'encoder.layers.0.ffn.layers.1.weight'
    ) in report
    assert 'dropped, and not to be had back from the result:' in report
    assert 'left by the old EMA hook; the plain names hold the averages (3): ema_backbone' in text
    assert 'not weights of the model, left out: optimizer' in report
    assert report[-1].endswith(f'ours.pth: {len(weights) - parts + 36} weights, our names')


def test_unused_classifier_and_other_contents_of_a_file(tmp_path):
    weights = official_weights(MASK2FORMER)
    old = {**weights, 'decode_head.conv_seg.weight': torch.ones(2), 'decode_head.conv_seg.bias': 1}
    torch.save({'state_dict': old, 'meta': {}}, tmp_path / 'in.pth')
    text = '\n'.join(convert_file(str(tmp_path / 'in.pth'), str(tmp_path / 'o.pth'), 'ours'))
    assert 'that no decode head of it uses (1): decode_head.conv_seg.weight' in text
    assert 'no tensor (1): decode_head.conv_seg.bias' in text


def test_palette_and_progress_are_kept(tmp_path):
    meta = {'CLASSES': ('wall', 'sky'), 'PALETTE': [[1, 2, 3], [4, 5, 6]], 'iter': 7}
    torch.save({'state_dict': official_weights(UPERNET), 'meta': meta}, tmp_path / 'in.pth')
    convert_file(str(tmp_path / 'in.pth'), str(tmp_path / 'ours.pth'), 'ours')
    assert read(tmp_path / 'ours.pth')['meta'] == {
        'dataset_meta': {'classes': ('wall', 'sky'), 'palette': meta['PALETTE']},
        'iter': 7,
    }
    convert_file(str(tmp_path / 'ours.pth'), str(tmp_path / 'back.pth'), 'official')
    assert read(tmp_path / 'back.pth')['meta'] == meta


def test_hugging_face_safetensors(tmp_path):
    from safetensors.torch import save_file

    weights = official_weights(H)
    save_file({f'model.{k}': v for k, v in weights.items()}, tmp_path / 'model.safetensors')
    report = convert_file(str(tmp_path / 'model.safetensors'), str(tmp_path / 'o.pth'), 'official')
    assert_same(read(tmp_path / 'o.pth')['model'], weights)
    assert "  Hugging Face names ('model.' in front, 'layer_scale') made official" in report


def test_old_format_of_pytorch(tmp_path):
    """Before PyTorch 1.6; such files cannot be mapped."""
    weights = official_weights(T)
    torch.save({'model': weights}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    convert_file(str(tmp_path / 'old.pth'), str(tmp_path / 'o.pth'), 'official')
    assert_same(read(tmp_path / 'o.pth')['model'], weights)


@pytest.fixture
def source(tmp_path):
    torch.save({'model': official_weights(T)}, tmp_path / 'in.pth')
    return str(tmp_path / 'in.pth')


def test_left_over_names_are_listed_and_nothing_is_written(tmp_path, source):
    weights = {
        **read(source)['model'],
        'relative_position_index': torch.ones(1),
        'x.y': torch.ones(1),
    }
    torch.save({'model': weights}, source)
    with pytest.raises(CheckpointError) as error:
        convert_file(source, str(tmp_path / 'o.pth'), 'ours')
    assert str(error.value).endswith('can be converted:\n  relative_position_index\n  x.y')
    assert f'looks like a classifier, but 2 of its {len(weights)} names' in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.pth']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'state_dict': {'fc.weight': torch.ones(1)}}, r'not a checkpoint of a model .*\n  fc\.w'),
        ({'meta': {'epoch': 1}}, 'holds no tensors'),
    ],
)
def test_other_models(tmp_path, content, message):
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(CheckpointError, match=message):
        convert_file(str(tmp_path / 'in.pth'), str(tmp_path / 'o.pth'), 'ours')


def test_existing_file_is_replaced_only_when_told(tmp_path, source):
    target = tmp_path / 'o.pth'
    target.write_text('precious')
    with pytest.raises(CheckpointError, match=r'o\.pth is there already; --overwrite'):
        convert_file(source, str(target), 'ours')
    assert target.read_text() == 'precious'
    convert_file(source, str(target), 'ours', overwrite=True)
    assert 'head.fc.weight' in read(target)['state_dict']
    # In place as well: the source is read until the target is complete.
    convert_file(str(target), str(target), 'official', overwrite=True)
    assert_same(read(target)['model'], read(source)['model'])


def test_fifo_is_refused_and_left(tmp_path, source):
    fifo = tmp_path / 'o.pth'
    os.mkfifo(fifo)
    with pytest.raises(UserError, match=r'o\.pth cannot be written: .*not a regular file'):
        convert_file('none.pth', str(fifo), 'ours', overwrite=True)  # said before it is read
    assert fifo.is_fifo()


def test_symbolic_link_is_written_through(tmp_path, source):
    (tmp_path / 'folder').mkdir()
    link = tmp_path / 'link.pth'
    link.symlink_to('folder/o.pth')
    convert_file(source, str(link), 'ours')
    assert link.is_symlink()
    assert 'head.fc.weight' in read(tmp_path / 'folder' / 'o.pth')['state_dict']
    assert [p.name for p in (tmp_path / 'folder').iterdir()] == ['o.pth']
    with pytest.raises(CheckpointError, match='is there already'):
        convert_file(source, str(link), 'ours')


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        ('no/such/o.pth', 'its folder does not exist'),
        ('o.safetensors', 'PyTorch files are written'),
    ],
)
def test_target_that_cannot_be(tmp_path, source, target, message):
    with pytest.raises(CheckpointError, match=message):
        convert_file(source, str(tmp_path / target), 'ours')


def test_interrupted_writing_leaves_nothing(tmp_path, source, monkeypatch):
    def half(content, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', half)
    (tmp_path / 'o.pth').write_text('precious')
    with pytest.raises(CheckpointError, match=r'o\.pth cannot be written: .*No space left'):
        convert_file(source, str(tmp_path / 'o.pth'), 'ours', overwrite=True)
    assert (tmp_path / 'o.pth').read_text() == 'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.pth', 'o.pth']

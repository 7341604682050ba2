"""The iNaturalist 2018 data set: files, labels, encodings, errors."""

import json
import math

import pytest

from internimage_mm.cls import INaturalist2018
from internimage_mm.cls.inaturalist import encode_date, encode_place


@pytest.mark.parametrize(
    ('month', 'point'),
    [(1, (0.5, 3**0.5 / 2)), (3, (1, 0)), (8, (-(3**0.5) / 2, -0.5)), (12, (0, 1))],
)
def test_date(month, point):
    assert encode_date(f' 2016-{month:02d}-31') == pytest.approx([*point, 0, 0], abs=1e-12)


@pytest.mark.parametrize('date', [None, '', 'June 2016', '2016'])
def test_unknown_date(date):
    assert encode_date(date) == [0.0] * 4


def test_date_with_time_of_day():
    assert encode_date('2017-03-01 12:30:00') == encode_date('2017-3-9')


def test_place():
    assert encode_place(30.0, 60.0) == pytest.approx([math.sqrt(3) / 4, 0.75, 0.5], abs=1e-12)
    assert encode_place(-90.0, 45.0) == pytest.approx([0, 0, -1], abs=1e-12)


@pytest.mark.parametrize('place', [(None, None), (None, 1.0), (0.0, 50.0), (50.0, 0.0)])
def test_unknown_place(place):
    assert encode_place(*place) == [0.0] * 3


def write(root, locations=True, drop_location=False):
    content = dict(
        images=[
            dict(id=7, file_name='train_val2018/a/7.jpg'),
            dict(id=3, file_name='train_val2018/b/3.jpg'),
        ],
        categories=[dict(id=20, name='Parus major'), dict(id=10, name='Bellis perennis')],
        annotations=[
            dict(id=1, image_id=7, category_id=10),
            dict(id=2, image_id=3, category_id=20),
        ],
    )
    # Not in the order of the annotations.
    places = [
        dict(id=3, date='2017-06-02 00:00:00', lat=None, lon=None, loc_uncert=None, user_id=1),
        dict(id=7, date=None, lat=30.0, lon=60.0, loc_uncert=None, user_id=1),
    ]
    (root / 'val2018.json').write_text(json.dumps(content))
    if locations:
        text = json.dumps(places[: 1 if drop_location else 2])
        (root / 'val2018_locations.json').write_text(text)


def test_samples(tmp_path):
    write(tmp_path)
    data = INaturalist2018(data_root=str(tmp_path), ann_file='val2018.json')
    assert data.metainfo['classes'] == ('Parus major', 'Bellis perennis')
    first, second = data[0], data[1]
    assert first['img_path'] == str(tmp_path / 'train_val2018/a/7.jpg')
    assert (first['gt_label'], second['gt_label']) == (1, 0)
    assert first['temporal_info'] == [0.0] * 4
    assert first['spatial_info'] == encode_place(30.0, 60.0)
    assert second['temporal_info'] == pytest.approx([0, -1, 0, 0], abs=1e-12)
    assert second['spatial_info'] == [0.0] * 3


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'val2018\.json.*README'):
        INaturalist2018(data_root=str(tmp_path), ann_file='val2018.json')
    write(tmp_path, locations=False)
    with pytest.raises(FileNotFoundError, match='val2018_locations.json'):
        INaturalist2018(data_root=str(tmp_path), ann_file='val2018.json')


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path, drop_location=True)
    with pytest.raises(ValueError, match='lacks 1 of 2 images, the first with the id 7'):
        INaturalist2018(data_root=str(tmp_path), ann_file='val2018.json')

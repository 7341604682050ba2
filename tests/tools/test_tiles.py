"""Large images in tiles, folders and videos: tools/image_demo.py and what it stands on."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as mask_api

from internimage_mm.det.tiling import merge, of_picture
from internimage_mm.tiles import divide, run_length_code, runs_of

from .conftest import run_tool
from .test_end_to_end import official

SIDE = 96


def decoded(code):
    return mask_api.decode(mask_api.frPyObjects(code, *code['size'])).astype(bool)


def box_of(record):
    left, top, width, height = record['bbox']
    return [left, top, left + width, top + height]


@pytest.fixture(scope='module')
def mosaic(tmp_path_factory, mini_coco):
    """A picture of 2 x 3 parts, and its file."""
    first, second = (cv2.imread(str(path))[:SIDE, :SIDE] for path in (mini_coco / 'val').iterdir())
    parts = [[first, second, first[::-1]], [second[:, ::-1], first[:, ::-1], second[::-1]]]
    pixels = np.vstack([np.hstack(row) for row in parts])
    path = tmp_path_factory.mktemp('mosaic') / 'mosaic.png'
    cv2.imwrite(str(path), pixels)
    return pixels, path


def test_run_length_code_of_parts():
    rng = np.random.default_rng(0)
    whole = cv2.blur(rng.random((60, 71)), (5, 5)) > 0.5
    parts = [
        runs_of(whole[top : top + 20, left : left + 24], left, top, 60)
        for top in range(0, 60, 20)
        for left in range(0, 71, 24)
    ]
    for mask, runs in [(whole, parts), (whole & False, []), (whole | True, [])]:
        code = run_length_code(runs or [runs_of(mask, 0, 0, 60)], 71, 60)
        expected = mask_api.encode(np.asfortranarray(mask, np.uint8))
        assert mask_api.frPyObjects(code, 60, 71) == expected


@pytest.mark.parametrize('jitter', [0, 1])
def test_an_object_in_several_tiles_is_found_once(jitter):
    """Connected components as a detector; one that is cut off by a tile is a smaller one."""
    rng = np.random.default_rng(0)
    width, height, cell = 700, 430, 30
    picture = np.zeros((height, width), np.uint8)
    for y in range(0, height - cell, cell):
        for x in range(0, width - cell, cell):
            w, h = rng.integers(14, 24, 2)
            dx, dy = rng.integers(1, cell - 24, 2)
            picture[y + dy : y + dy + h, x + dx : x + dx + w] = 255

    def detect(box, jitter=0):
        left, top, right, bottom = box
        count, labels, stats, _ = cv2.connectedComponentsWithStats(picture[top:bottom, left:right])
        boxes = torch.tensor(stats[1:, :4], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes += torch.from_numpy(rng.uniform(-jitter, jitter, boxes.shape)).float()
        return InstanceData(
            bboxes=boxes,
            scores=torch.from_numpy(rng.random(count - 1)),
            labels=torch.zeros(count - 1, dtype=torch.int64),
            masks=torch.from_numpy(labels) == torch.arange(1, count)[:, None, None],
        )

    rows = divide(width, height, tile=128, overlap=0.25)
    found = merge([[of_picture(detect(tile.box, jitter), tile) for tile in row] for row in rows])
    whole = detect((0, 0, width, height))
    assert len(found) == len(whole) > 250
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    nearest = torch.cdist(found.bboxes, whole.bboxes).argmin(1)
    assert len(nearest.unique()) == len(whole)
    assert (found.bboxes - whole.bboxes[nearest]).abs().max() <= jitter
    for i, (left, top, mask) in zip(nearest.tolist(), found.masks, strict=True):
        expected = whole.masks[i].numpy().copy()
        h, w = mask.shape
        assert (expected[top : top + h, left : left + w] == mask).all()
        expected[top : top + h, left : left + w] = False
        assert not expected.any()


def test_detections_in_a_tile_are_those_of_the_tile_alone(tmp_path, detector_config, mosaic):
    from mmdet.apis import inference_detector

    pixels, path = mosaic
    model = official(detector_config, tmp_path / 'a.pth')
    run_tool(
        'image_demo', path, detector_config, tmp_path / 'a.pth', '--tile', SIDE, '--overlap', 0,
        '--score-thr', 0, '--json', tmp_path / 'a.json', '--out', tmp_path / 'a.png',
    )  # fmt: skip
    ((image,), shape) = json.loads((tmp_path / 'a.json').read_text()), pixels.shape[:2]
    records = image['predictions']
    assert len(records) == 6 * 5
    assert (cv2.imread(str(tmp_path / 'a.png')) != pixels).mean() > 0.05
    for top in (0, SIDE):
        for left in (0, SIDE, 2 * SIDE):
            part = pixels[top : top + SIDE, left : left + SIDE].copy()
            for box, score, mask in zip(
                *map(
                    inference_detector(model, part).pred_instances.get,
                    ('bboxes', 'scores', 'masks'),
                ),
                strict=True,
            ):
                box = box.numpy() + [left, top, left, top]
                whole = np.zeros(shape, bool)
                whole[top : top + SIDE, left : left + SIDE] = mask
                (record,) = [
                    r
                    for r in records
                    if np.allclose(box_of(r), box, rtol=0, atol=0.02)
                    and abs(r['score'] - score) < 1e-5
                ]
                assert (decoded(record['segmentation']) == whole).all()


def test_drawing_moves_nothing(tmp_path, detector_config, mosaic, recwarn):
    """Also where boxes reach into other tiles. No warning of what lies outside."""
    pixels, path = mosaic
    official(detector_config, tmp_path / 'a.pth')
    run_tool(
        'image_demo', path, detector_config, tmp_path / 'a.pth', '--tile', SIDE, '--overlap', 0.5,
        '--score-thr', 0, '--json', tmp_path / 'a.json', '--out', tmp_path / 'a.png',
    )  # fmt: skip
    differs = (cv2.imread(str(tmp_path / 'a.png')) != pixels).any(-1)
    empty = np.ones(differs.shape, bool)
    edges = [
        x for row in divide(*differs.shape[::-1], SIDE, 0.5) for tile in row for x in tile.core
    ]
    crossing = 0
    ((image,),) = (json.loads((tmp_path / 'a.json').read_text()),)
    for record in image['predictions']:
        left, top, right, bottom = map(int, box_of(record))
        crossing += any(left < edge < right for edge in edges)
        # Names stand at the left upper corner.
        empty[max(top - 4, 0) : bottom + 5, max(left - 4, 0) : max(right + 5, left + 60)] = False
        empty[max(top - 4, 0) : top + 20, max(left - 4, 0) : left + 60] = False
    assert crossing
    assert not [w for w in recwarn if 'out of bounds' in str(w.message)]
    assert empty.mean() > 0.1
    assert not differs[empty].any()


def test_labels_in_a_tile_are_those_of_the_tile_alone(tmp_path, segmentor_config, mosaic):
    from mmseg.apis import inference_model

    pixels, path = mosaic
    model = official(segmentor_config, tmp_path / 'a.pth')
    run_tool(
        'image_demo', path, segmentor_config, tmp_path / 'a.pth', '--tile', 80, '--overlap', 0.25,
        '--json', tmp_path / 'a.json', '--out', tmp_path / 'a.png',
    )  # fmt: skip
    ((image,), shape) = json.loads((tmp_path / 'a.json').read_text()), pixels.shape[:2]
    labels = np.full(shape, -1)
    for record in image['predictions']:
        mask = decoded(record['segmentation'])
        assert mask.sum() == record['area']
        assert (labels[mask] == -1).all()
        labels[mask] = model.cfg.metainfo.classes.index(record['category'])
    for tile in (tile for row in divide(*shape[::-1], 80, 0.25) for tile in row):
        left, top, right, bottom = tile.box
        alone = inference_model(model, pixels[top:bottom, left:right].copy()).pred_sem_seg.data[0]
        x0, y0, x1, y1 = tile.core
        expected = alone[y0 - top : y1 - top, x0 - left : x1 - left]
        assert (labels[y0:y1, x0:x1] == expected.numpy()).all()
    palette = np.array(model.cfg.metainfo.palette)[labels][..., ::-1]
    drawn = cv2.imread(str(tmp_path / 'a.png'))
    # Names are written over some of it.
    alpha = model.cfg.visualizer.get('alpha', 0.8)
    assert np.median(np.abs(drawn - ((1 - alpha) * pixels + alpha * palette))) <= 1


@pytest.mark.parametrize(('name', 'rate'), [('in.avi', 5), ('in.mjpeg', 25)])
def test_video(tmp_path, detector_config, mosaic, name, rate):
    """In a container, and as a stream that does not say how many frames it has."""
    from mmdet.apis import inference_detector

    model, path = official(detector_config, tmp_path / 'a.pth'), tmp_path / name
    shifted = [np.roll(mosaic[0], shift, 1) for shift in (0, 40)]
    if path.suffix == '.avi':
        writer = cv2.VideoWriter(
            str(path), cv2.VideoWriter.fourcc(*'MJPG'), 5, (3 * SIDE, 2 * SIDE)
        )
        for pixels in shifted:
            writer.write(pixels)
        writer.release()
    else:
        path.write_bytes(b'\0'.join([b'', *(cv2.imencode('.jpg', p)[1] for p in shifted)]))
    run_tool(
        'image_demo', path, detector_config, tmp_path / 'a.pth', '--score-thr', 0,
        '--json', tmp_path / 'a.json', '--out', tmp_path / 'out.mp4',
    )  # fmt: skip
    frames = json.loads((tmp_path / 'a.json').read_text())
    source, drawn = (cv2.VideoCapture(str(file)) for file in (path, tmp_path / 'out.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == rate
    for index, frame in enumerate(frames):
        assert frame['frame'] == index
        pixels = source.read()[1]
        assert drawn.read()[1].shape == pixels.shape
        expected = inference_detector(model, pixels).pred_instances.scores
        scores = [record['score'] for record in frame['predictions']]
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(frames) == 2
    assert not drawn.read()[0]


def test_geotiff(tmp_path, segmentor_config, mosaic):
    """Read and written by parts, and as a PNG."""
    rasterio = pytest.importorskip('rasterio', reason='the extra "large" is not installed')
    pixels, path = mosaic
    official(segmentor_config, tmp_path / 'a.pth')
    place = dict(crs='EPSG:32633', transform=rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5e6))
    height, width = pixels.shape[:2]
    with rasterio.open(
        tmp_path / 'in.tif', 'w', width=width, height=height, count=3, dtype='uint8', **place
    ) as file:
        file.write(pixels[..., ::-1].transpose(2, 0, 1))
    for image, out in ((path, 'out.png'), (tmp_path / 'in.tif', 'out.tif')):
        run_tool(
            'image_demo', image, segmentor_config, tmp_path / 'a.pth', '--tile', 80,
            '--out', tmp_path / out,
        )  # fmt: skip
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert (file.crs, file.transform) == (place['crs'], place['transform'])
        drawn = file.read().transpose(1, 2, 0)[..., ::-1]
    assert (drawn == cv2.imread(str(tmp_path / 'out.png'))).all()

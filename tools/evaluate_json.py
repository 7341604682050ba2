"""Average precision of the boxes that tools/image_demo.py wrote as JSON, for images of any size."""

import argparse
import json
import os.path as osp

from internimage_mm.commands import UserError, reports_user_errors


@reports_user_errors
def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('predictions', help='JSON file of tools/image_demo.py (--score-thr 0)')
    parser.add_argument('annotations', help='COCO annotation file of the same images')
    args = parser.parse_args(argv)
    for path in (args.predictions, args.annotations):
        if not osp.isfile(path):
            raise UserError(f'{path} does not exist')

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(args.annotations)
    images = {osp.basename(image['file_name']): i for i, image in truth.imgs.items()}
    categories = {category['name']: i for i, category in truth.cats.items()}
    with open(args.predictions) as file:
        predicted = json.load(file)
    boxes = []
    for image in predicted:
        name = osp.basename(image['image'])
        if name not in images:
            raise UserError(f'{args.annotations} has no image {name}')
        for record in image['predictions']:
            if record['category'] not in categories:
                raise UserError(f'{args.annotations} has no category {record["category"]}')
            boxes.append(
                {
                    'image_id': images[name],
                    'category_id': categories[record['category']],
                    'bbox': record['bbox'],
                    'score': record['score'],
                }
            )
    if not boxes:
        raise UserError(f'{args.predictions} has no boxes')
    evaluation = COCOeval(truth, truth.loadRes(boxes), 'bbox')
    # COCO counts the best 100 detections of an image; large images have more objects.
    evaluation.params.maxDets = [100000]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, 0]  # thresholds, recalls, categories
    precision = precision[:, :, (precision > -1).any((0, 1))]
    result = {'AP': float(precision.mean()), 'AP50': float(precision[0].mean())}
    print(', '.join(f'{name} {value:.3f}' for name, value in result.items()))
    return result


if __name__ == '__main__':
    main()

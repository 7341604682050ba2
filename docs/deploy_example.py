"""Detects or segments with an exported model; needs NumPy, OpenCV and onnxruntime or OpenVINO."""

import sys

import cv2
import numpy as np

from internimage_mm.deploy import load

if len(sys.argv) != 4:
    sys.exit('usage: python deploy_example.py MODEL PICTURE OUT')
model_file, picture_file, out_file = sys.argv[1:]
try:
    predict = load(model_file)
except (ImportError, RuntimeError, ValueError) as error:
    sys.exit(f'error: {error}')
picture = cv2.imread(picture_file)
if picture is None:
    sys.exit(f'error: {picture_file} is no picture that OpenCV can read')
if predict.family == 'detector':
    found = predict(picture, min_score=0.3)
    for i, (box, score, label) in enumerate(
        zip(found['boxes'], found['scores'], found['labels'], strict=True)
    ):
        x1, y1, x2, y2 = box.round().astype(int).tolist()
        name = predict.classes[label]
        print(f'{name} {score:.3f} {x1} {y1} {x2} {y2}')
        if 'masks' in found:
            picture[found['masks'][i]] //= 2
        cv2.rectangle(picture, (x1, y1), (x2, y2), (0, 255, 0), 2)
        cv2.putText(picture, name, (x1, y1 + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 0))
elif predict.family == 'segmentor':
    labels = predict(picture)['labels']
    colors = np.array(predict.metadata['palette'], np.uint8)[:, ::-1]
    picture = picture // 2 + colors[labels] // 2
    for label, pixels in enumerate(np.bincount(labels.ravel())):
        if pixels:
            print(f'{predict.classes[label]} {pixels / labels.size:.1%}')
cv2.imwrite(out_file, picture)

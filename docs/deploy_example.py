"""Runs an exported model on a picture; needs NumPy, OpenCV and onnxruntime or OpenVINO."""

import sys

import cv2
import numpy as np

from internimage_mm.deploy import load

FONT = cv2.FONT_HERSHEY_SIMPLEX

if len(sys.argv) != 4:
    sys.exit('usage: python deploy_example.py MODEL PICTURE OUT')
model_file, picture_file, out_file = sys.argv[1:]
picture = cv2.imread(picture_file)
if picture is None:
    sys.exit(f'error: {picture_file} is no picture that OpenCV can read')
try:
    predict = load(model_file)
    found = predict(picture, min_score=0.3)
except (ImportError, RuntimeError, ValueError) as error:
    sys.exit(f'error: {error}')
classes = predict.classes
if predict.family == 'detector':
    for i, (score, label) in enumerate(zip(found['scores'], found['labels'], strict=True)):
        x1, y1, x2, y2 = found['boxes'][i].round().astype(int).tolist()
        print(f'{classes[label]} {score:.3f} {x1} {y1} {x2} {y2}')
        if 'masks' in found:
            picture[found['masks'][i]] //= 2
        cv2.rectangle(picture, (x1, y1), (x2, y2), (0, 255, 0), 2)
        cv2.putText(picture, classes[label], (x1, y1 + 12), FONT, 0.5, (0, 255, 0))
elif predict.family == 'segmentor':
    labels = found['labels']
    colors = np.array(predict.metadata['palette'], np.uint8)[:, ::-1]
    picture = picture // 2 + colors[labels] // 2
    for label, pixels in enumerate(np.bincount(labels.ravel())):
        if pixels:
            print(f'{classes[label]} {pixels / labels.size:.1%}')
else:
    for label in found['scores'].argsort()[:-6:-1]:
        print(f'{classes[label]} {found["scores"][label]:.3f}')
cv2.imwrite(out_file, picture)

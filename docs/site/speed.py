"""Draw docs/pictures/speed.svg from the measurements in docs/benchmarks.

python docs/site/speed.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1]
MODELS = {
    'internimage-tiny cpu': ('InternImage-T', '#3f51b5'),
    'convnext-tiny': ('ConvNeXt-T', '#b0b4c4'),
    'swin-tiny': ('Swin-T', '#d5d8e2'),
}

plt.rcParams['svg.hashsalt'] = 'speed'  # the same file from the same numbers
figure, axes = plt.subplots(1, 4, figsize=(10, 1.9), layout='constrained')
for half, size in zip((axes[:2], axes[2:]), ('800x1280', '224x224'), strict=True):
    measured = json.loads((DOCS / f'benchmarks/backbone-{size}.json').read_text())
    rows = {' '.join(filter(None, (r['model'], r['backend']))): r for r in measured['rows']}
    for axis, what, title in zip(
        half, ('forward', 'forward_backward'), ('inference', 'training step'), strict=True
    ):
        for place, (name, (_, color)) in enumerate(MODELS.items()):
            seconds = rows[name][what]['ms'] / 1000
            axis.barh(place, seconds, color=color)
            axis.text(seconds, place, f' {seconds:.3g} s', va='center', fontsize=8)
        axis.set_yticks(range(3), [label for label, _ in MODELS.values()], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, axis.get_xlim()[1] * 1.25)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title(f'{title}, {size}', fontsize=9)
machine = measured['machine']
figure.supxlabel(
    f'{machine["threads"]} threads of {machine["processor"].replace("(R)", "")}, '
    f'{machine["instruction set"]}, torch {machine["torch"]}, float32, one image',
    fontsize=7,
)
(DOCS / 'pictures').mkdir(exist_ok=True)
figure.savefig(DOCS / 'pictures/speed.svg', metadata={'Date': None})

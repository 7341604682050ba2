"""A plugin of setuptools that joins the sources of mmcv's operators into a few files.

Of the time to compile one of its 80 files, most goes into torch's headers.
"""

from pathlib import Path

PARTS = 6
# On the CPU, these define the same names: each goes into another part.
APART = (
    'bezier_align.cpp',
    'roi_align.cpp',
    'roi_align_rotated.cpp',
    'rotated_feature_align.cpp',
)


def join_sources(distribution):
    """Let mmcv's extension compile files that include its own (an entry point of setuptools)."""
    for extension in distribution.ext_modules or ():
        # Not CUDA's, which nvcc compiles for several GPUs each.
        folders = ('csrc/pytorch/cpu', 'csrc/pytorch')
        cpp = [s for f in folders for s in extension.sources if Path(s).match(f'{f}/*.cpp')]
        if extension.name == 'mmcv._ext' and cpp:
            others = [source for source in extension.sources if source not in cpp]
            cpp.sort(key=lambda source: (not source.endswith(APART), source))
            extension.sources = others + [write(i, cpp[i::PARTS]) for i in range(PARTS)]


def write(i, sources):
    part = Path('build', f'part{i}.cpp')
    part.parent.mkdir(exist_ok=True)
    # One of the files leaves macros with these names behind.
    part.write_text(
        ''.join(f'#include "{Path(s).resolve()}"\n#undef min\n#undef max\n' for s in sources)
    )
    return str(part)

"""What importing the package does, and that it needs no library but torch."""

import subprocess
import sys


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_mmengine():
    printed = run("""
import sys

sys.modules['mmengine'] = None  # as if it were not installed
import internimage_mm

assert internimage_mm.config_path('coco/mask-rcnn_internimage-t_fpn_1x_coco')
try:
    from internimage_mm import WarmupCosineLR
except ImportError as error:
    print(error)
assert not hasattr(internimage_mm, 'Surprise')
""")
    assert printed.startswith('internimage_mm.WarmupCosineLR needs PyTorch and mmengine: ')


def test_torch_is_changed_only_when_a_backbone_is_built():
    run("""
import torch.serialization
import mmengine.runner

allowed = torch.serialization.get_safe_globals()
import internimage_mm

hooks = torch.nn.modules.module._global_module_registration_hooks
assert not hooks
internimage_mm.InternImage('tiny', channels=8, depths=[1] * 4, groups=[1] * 4)
internimage_mm.InternImage('tiny', channels=8, depths=[1] * 4, groups=[1] * 4)
assert len(hooks) == 1
assert torch.serialization.get_safe_globals() == allowed
""")

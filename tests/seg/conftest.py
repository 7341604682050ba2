from mmseg.utils import register_all_modules

import internimage_mm  # noqa: F401  prepares torchvision, which mmseg's modules import

register_all_modules(init_default_scope=False)

import os

import torch

if not torch.cuda.is_available():
    # Before anything imports triton: its interpreter runs the Triton kernels on CPU tensors.
    os.environ.setdefault('TRITON_INTERPRET', '1')

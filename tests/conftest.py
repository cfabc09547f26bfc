"""What every test shares: no network, no time limit per hypothesis example, which a busy machine would break, and GPU
kernels that run under Triton's interpreter where there is no GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for the hub fails at once

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

settings.register_profile("modelwright", deadline=None)
settings.load_profile("modelwright")

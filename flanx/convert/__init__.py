"""Checkpoints of T5X, Hugging Face and flanx, each into the others; see `flanx convert --help`.

source = flanx.convert.open_source("gs://t5-data/pretrained_models/t5x/flan_t5_small/checkpoint_1198000")
params = flanx.convert.restore(source, target)  # onto any mesh
parent = flanx.convert.fingerprint(source.tensors)
"""

from flanx.convert.lazy_tensor import Tensor, fingerprint
from flanx.convert.open_checkpoint import Source, expect_parent, open_source, restore

__all__ = ["Source", "Tensor", "expect_parent", "fingerprint", "open_source", "restore"]

"""Converts between checkpoints of T5X, Hugging Face and flanx; see `flanx convert --help`.

source = flanx.convert.open_checkpoint("gs://t5-data/pretrained_models/t5x/flan_t5_small/checkpoint_1198000")
params = flanx.convert.restore(source, target)  # onto any mesh
parent = flanx.convert.fingerprint(source.tensors)
"""

from flanx.convert.formats import OpenCheckpoint, expect_model, expect_parent, open_checkpoint, restore, restore_moments
from flanx.convert.lazy_tensor import LazyTensor, fingerprint

__all__ = [
    "LazyTensor",
    "OpenCheckpoint",
    "expect_model",
    "expect_parent",
    "fingerprint",
    "open_checkpoint",
    "restore",
    "restore_moments",
]

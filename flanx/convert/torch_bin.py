"""torch's own files (`pytorch_model.bin`), read as plain tensors: no code that such a file may hold is run."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flanx.convert.lazy_tensor import BFLOAT16, Index, LazyTensor
from flanx.errors import UserError


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a torch file, without running code in it. Raises UserError if torch is not installed."""
    try:
        import torch  # noqa: PLC0415  the extra `hf`
    except ImportError as error:
        raise UserError(f"{path} needs torch: pip install 'flanx[hf]', or give a folder with safetensors") from error

    # torch before 1.6 wrote a stream that cannot be mapped: such a file is held in memory as a whole
    mapped = zipfile.is_zipfile(path)

    def load() -> dict[str, Any]:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            raise UserError(f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]})") from error

    def fetch(name: str, index: Index) -> np.ndarray:
        # loaded again (the file is only mapped), so that pages of tensors already read do not pile up
        values = (load() if mapped else loaded)[name][index]
        if values.dtype == torch.bfloat16:
            return values.contiguous().view(torch.uint16).numpy().view(BFLOAT16)
        return values.numpy()

    def tensor(name: str, values: Any) -> LazyTensor:
        dtype = BFLOAT16 if values.dtype == torch.bfloat16 else torch.empty(0, dtype=values.dtype).numpy().dtype
        return LazyTensor(tuple(values.shape), dtype, lambda index: fetch(name, index))

    loaded = load()
    return {name: tensor(name, values) for name, values in loaded.items()}

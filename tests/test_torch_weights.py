"""Arrays are read out of PyTorch's pickles, and nothing in one is called."""

import collections
import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from template.model.torch_weights import MAGIC, read_state_dict
from template.model.weights import WeightsError


class Storage:
    """What torch.save writes for a storage: its kind, a key, and apart from them its numbers."""

    def __init__(self, key: str, numbers: np.ndarray, kind: str = "FloatStorage"):
        """Numbers of one kind under a key."""
        self.key, self.numbers, self.kind = key, numbers, kind


class Named:
    """Is pickled as a name that the reader looks up."""

    def __init__(self, module: str, name: str):
        """`name` of `module`, which need not exist here."""
        self.module, self.name = module, name


class Call:
    """Is pickled as a call, with what it calls named."""

    def __init__(self, what: Named, *arguments):
        """What is called, and with what."""
        self.what, self.arguments = what, arguments


class Writer(pickle._Pickler):
    """Python's own pickler, which can be taught to write names of modules that are not here."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return "storage", Named("torch", thing.kind), thing.key, "cpu", thing.numbers.size, None
        return None

    def save_named(self, thing):
        self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())

    def save_call(self, thing):
        self.save(thing.what)
        self.save(thing.arguments)
        self.write(pickle.REDUCE)

    dispatch[Named], dispatch[Call] = save_named, save_call


def tensor(storage: Storage, offset: int, shape: tuple, stride: tuple) -> Call:
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, stride, False, collections.OrderedDict())


def pickled(*things) -> bytes:
    out = io.BytesIO()
    for thing in things:
        Writer(out, protocol=2).dump(thing)
    return out.getvalue()


def legacy(state: object, storages: list[Storage], magic: int = MAGIC) -> bytes:
    """What torch.save wrote before version 1.6."""
    head = pickled(magic, 1001, {"little_endian": True}, state, [storage.key for storage in storages])
    return head + b"".join(s.numbers.size.to_bytes(8, "little") + s.numbers.tobytes() for s in storages)


def read(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Read a file whose SHA-256 is the expected one: past the first wall."""
    path.write_bytes(data)
    return read_state_dict(path, hashlib.sha256(data).hexdigest())


@pytest.fixture
def whole() -> bytes:
    floats, count = Storage("a", np.arange(24, dtype="<f4")), Storage("b", np.array([7], "<i8"), "LongStorage")
    state = collections.OrderedDict(
        kernel=tensor(floats, 0, (2, 3, 4), (12, 4, 1)),
        turned=tensor(floats, 0, (4, 2), (1, 4)),
        bias=tensor(floats, 20, (4,), (1,)),
        count=tensor(count, 0, (), ()),
    )
    return legacy(state, [floats, count])


def test_arrays_are_read_in_order_with_shape_place_and_strides(whole, tmp_path):
    arrays = read(tmp_path / "a.pth", whole)
    assert list(arrays) == ["kernel", "turned", "bias", "count"]
    numbers = np.arange(24)
    np.testing.assert_array_equal(arrays["kernel"], numbers.reshape(2, 3, 4))
    np.testing.assert_array_equal(arrays["turned"], numbers[:8].reshape(2, 4).T)
    np.testing.assert_array_equal(arrays["bias"], numbers[20:])
    assert arrays["count"] == 7 and arrays["count"].dtype == np.int64 and arrays["kernel"].dtype == np.float32


def test_another_file_is_not_unpickled_at_all(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("template.model.torch_weights._Reader", None)
    (tmp_path / "a.pth").write_bytes(whole)
    with pytest.raises(WeightsError, match=r"(?s)a.pth .*expected SHA-256 0{64}, received \w{64}.*pip install"):
        read_state_dict(tmp_path / "a.pth", "0" * 64)


HOSTILE = {
    "os.system": ("os", "system"),
    "posix.system": ("posix", "system"),
    "eval": ("builtins", "eval"),
    "getattr": ("builtins", "getattr"),
    "an import": ("importlib", "import_module"),
    "an attribute of what is known": ("collections", "OrderedDict.fromkeys"),
    "another of torch": ("torch", "load"),
    "a storage of another kind": ("torch", "UntypedStorage"),
}


@pytest.mark.parametrize("place", ["instead of the state", "in the state", "before all"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_nothing_else_can_be_made_of_a_file(name, place, whole, tmp_path, monkeypatch):
    called = []
    for function in ("system", "popen"):
        monkeypatch.setattr(os, function, lambda *line: called.append(line))
    call = Call(Named(*name), f"open({str(tmp_path / 'made')!r}, 'w')")
    data = {
        "instead of the state": legacy(call, []),
        "in the state": legacy(collections.OrderedDict(kernel=call), []),
        "before all": pickled(call) + whole,
    }[place]
    with pytest.raises(ValueError, match=f"{'.'.join(name)} has no place in a file of weights"):
        read(tmp_path / "hostile.pth", data)
    assert not called and not (tmp_path / "made").exists()


def test_the_hostile_files_would_do_harm_elsewhere(tmp_path):
    """Or the test above would show nothing."""
    call = Call(Named("builtins", "eval"), f"open({str(tmp_path / 'made')!r}, 'w').close()")
    pickle.loads(pickled(call))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (25,), (1,)), (1, (24,), (1,)), (-1, (2,), (1,)), (4, (2,), (-1,)), (0, (2, 2), (24, 1)), (0, (-1,), (1,))],
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, stride, tmp_path):
    floats = Storage("a", np.arange(24, dtype="<f4"))
    state = collections.OrderedDict(kernel=tensor(floats, offset, shape, stride))
    with pytest.raises(ValueError, match="not within its storage"):
        read(tmp_path / "a.pth", legacy(state, [floats]))


def test_a_file_that_is_cut_short_is_refused_wherever(whole, tmp_path):
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(ValueError):
            read(tmp_path / "a.pth", whole[:length])


@pytest.mark.parametrize("data", [pickled(1, 2, 3, {}, []), b"PK\x03\x04 as torch.save writes them now", b"text"])
def test_files_of_other_kinds_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="a.pth is no state dict of PyTorch"):
        read(tmp_path / "a.pth", data)

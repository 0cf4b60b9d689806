"""Batches go through plain containers and come back."""

from __future__ import annotations

import collections
import dataclasses
import gc
import io
import os
import sys
import weakref
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from lightning_gradguard.incident.batch import map_tensors
from lightning_gradguard.incident.codec import encode, find_unsaved
from lightning_gradguard.incident.decode import decode
from lightning_gradguard.incident.unsaved import Standin


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor


@dataclasses.dataclass
class Noisy:
    x: int

    def __post_init__(self):
        raise AssertionError("a constructor ran")


class Forgetful:
    name: str

    def __del__(self):
        os.unlink(self.name)


class Point(NamedTuple):
    x: torch.Tensor
    y: int


def through_a_file(value):
    file = io.BytesIO()
    torch.save(encode(value), file)
    file.seek(0)
    return decode(torch.load(file, weights_only=True))


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right) and left.dtype == right.dtype
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if dataclasses.is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(left)
        )
    return type(left) is type(right) and left == right


x = torch.arange(6.0).view(2, 3)
BATCHES = {
    "tensor": x,
    "pair": (x, torch.tensor([1, 2])),
    "nested": {"a": [x, (1, 2.5, "three", None, True)], "b": {"c": x, 4: 5}},
    "half and complex": [x.half(), x.bfloat16(), torch.complex(x, x), x.double(), x.bool()],
    "sparse": torch.eye(3).to_sparse(),
    "named tuple": Point(x, 3),
    "dataclass": Sample(x, "name"),
    "frozen dataclass in a list": [Frozen(x)],
    "numpy": (np.arange(3), np.float32(1.5), np.array(["a"]).size),
    "bytes and sets": (b"abc", b"", {1, 2}),
    "empty": [(), [], {}, torch.empty(0)],
    "dtype and device": [torch.float16, torch.device("cpu"), torch.Size([1, 2]), 1 + 2j],
    "a key that looks like ours": {"__gradguard__": "tuple", "items": [1]},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_batch_comes_back_as_it_was(batch):
    back = through_a_file(batch)
    if isinstance(batch, tuple) and any(isinstance(item, np.generic) for item in batch):
        assert same(batch[0], back[0])
        assert back[1] == 1.5
        return
    if isinstance(batch, torch.Tensor) and batch.is_sparse:
        batch, back = batch.to_dense(), back.to_dense()
    assert same(batch, back)


def test_mappings_of_python_come_back_as_what_they_were():
    ordered = collections.OrderedDict(b=x, a=1)
    back = through_a_file(ordered)
    assert type(back) is collections.OrderedDict
    assert list(back) == ["b", "a"]
    assert torch.equal(through_a_file(collections.UserDict(a=x))["a"], x)


def test_a_slice_does_not_take_the_whole_data_set_along():
    data_set = torch.zeros(100_000)
    file = io.BytesIO()
    torch.save(encode(data_set[:10]), file)
    assert file.getbuffer().nbytes < 5_000


def test_what_cannot_be_saved_is_described_with_its_place():
    unsaved = []
    encoded = encode({"x": x, "meta": [open]}, unsaved=unsaved)
    assert unsaved == ["batch['meta'][0] (builtins:builtin_function_or_method: <built-in function open>)"]
    assert [repr(item) for item in find_unsaved(decode(encoded))] == unsaved


def test_a_dataclass_that_is_not_imported_comes_back_as_an_object_with_its_attributes(monkeypatch):
    encoded = encode([Sample(x, "name")])
    monkeypatch.delitem(sys.modules, __name__)
    (back,) = decode(encoded)
    assert isinstance(back, Standin)
    assert back.name == "name"
    with pytest.raises(AttributeError, match=r"'shape' of an object whose class .*Sample is not imported here"):
        _ = back.shape


def test_decoding_imports_nothing_and_runs_no_constructor():
    def made(kind, **state):
        return decode({"__gradguard__": "object", "number": 0, "type": kind, "bases": [], "state": state, "view": []})

    assert type(made(f"{__name__}:Noisy", x=1)) is Noisy
    assert isinstance(made("antigravity:Anything", x=1), Standin)
    assert "antigravity" not in sys.modules
    assert isinstance(made("subprocess:Popen", args=["true"]), Standin)


def test_no_class_comes_back_of_which_code_runs_when_it_is_forgotten(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("")
    state = {"file": None, "name": str(kept), "delete": True, "close_called": False}
    for kind in ("tempfile:_TemporaryFileCloser", f"{__name__}:Forgetful"):
        encoded = {"__gradguard__": "object", "number": 0, "type": kind, "bases": [], "state": state, "view": []}
        assert isinstance(decode(encoded), Standin)
        gc.collect()
    assert kept.exists()


def test_a_described_part_is_found_in_every_container():
    batch = [Sample(open, "a"), {"k": (open,)}, Point(open, 1)]
    assert len(find_unsaved(decode(encode(batch)))) == 3


@pytest.mark.parametrize("batch", [{"a": [x]}, (x,), Sample(x, "n"), Point(x, 1), SimpleNamespace(x=x)])
def test_tensors_are_changed_in_a_copy(batch):
    paths = []

    def change(path, tensor):
        paths.append(path)
        return tensor + 1

    changed = map_tensors(batch, change)
    assert type(changed) is type(batch)
    assert len(paths) == 1
    assert torch.equal(x, torch.arange(6.0).view(2, 3))


def test_jagged_tensors_share_their_offsets_and_need_no_code_of_torch_to_be_read():
    rows = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    more = torch.nested.nested_tensor_from_jagged(rows.values() * 2, rows.offsets())
    holes = torch.nested.narrow(
        torch.ones(3, 5, 2), 1, torch.tensor([0, 1, 2]), torch.tensor([2, 3, 1]), layout=torch.jagged
    )
    file = io.BytesIO()
    torch.save(encode([rows, more, rows.transpose(1, 2), holes]), file)
    assert b"torch.nested" not in file.getvalue(), "a fresh process that has not imported it can read the file"
    file.seek(0)
    back = decode(torch.load(file, weights_only=True))
    assert [tuple(part.shape) for part in (back[0] + back[1]).unbind()] == [(2, 3), (4, 3)]
    assert [tuple(part.shape) for part in back[2].unbind()] == [(3, 2), (3, 4)]
    assert [tuple(part.shape) for part in back[3].unbind()] == [(2, 2), (3, 2), (1, 2)]


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": torch.tensor([0, 2, 10_000])},
        {"offsets": torch.tensor([0, -2, 6])},
        {"offsets": torch.tensor([0])},
        {"offsets": torch.tensor([0.0, 6.0])},
        {"lengths": torch.tensor([2, 5])},
        {"dim": 7},
        {"dim": "1"},
        {"values": None},
    ],
    ids=str,
)
def test_a_jagged_tensor_that_points_beyond_its_values_is_refused(change):
    encoded = encode(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged))
    with pytest.raises((TypeError, ValueError), match=r"jagged|broadcast|size"):
        decode({**encoded, **change})


class Store:
    """Answers to a mapping; its state holds what its items are, as the stores of a heterogeneous graph do."""

    def __init__(self, parts):
        self.parts = parts
        self.first = next(iter(parts.values()))

    def keys(self):
        return self.parts.keys()

    def __getitem__(self, key):
        return self.parts[key]


def test_where_its_class_is_not_known_what_an_object_holds_twice_is_one(monkeypatch):
    file = io.BytesIO()
    part = Sample(x, "one")
    torch.save(encode([Store({"a": part, "b": Sample(x, "two")}), part]), file)
    for cls in (Store, Sample):
        monkeypatch.delattr(sys.modules[__name__], cls.__name__)
    file.seek(0)
    store, same_part = decode(torch.load(file, weights_only=True))
    assert isinstance(store, Standin) and isinstance(same_part, Standin)
    assert store["a"] is store.first is same_part and store["b"].name == "two"


def test_a_weak_reference_to_what_a_plain_dict_stands_in_for_finds_it(monkeypatch):
    owner = collections.UserDict(x=x)
    made = through_a_file([owner, weakref.ref(owner)])
    assert made[1]() is made[0]
    assert decode({"__gradguard__": "weakref", "to": {"a": 1}})() == {"a": 1}


def test_a_named_tuple_that_holds_itself_ends():
    point = Point([x], 3)
    point.x.append(point)
    unsaved = []
    made = decode(encode(point, unsaved=unsaved))
    assert same(made.x[0], x) and len(unsaved) == 1 and "inside itself" in unsaved[0]

"""Takes a batch apart into its samples, along its own structure, and puts other samples in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_gradguard.incident.batch import is_array, named_tensors, parts_of, rebuild


class Rows:
    """A batch as so many samples.

    How many is what most of its parts agree on: the leading size of tensors and arrays, the number of sequences in a
    packed or nested one, the number of graphs, the length of a list of strings, of dicts, or of tensors that differ in
    size. Parts of that size have a row for each sample; all others are left whole.

    Args:
        batch: any batch.

    Attributes:
        size: the number of samples; 0 where the batch does not show it.

    Example:
        >>> Rows({"x": torch.zeros(3, 2), "names": ["a", "b", "c"], "scale": torch.ones(5)}).size
        3
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        votes = Counter(size for _, _, size in _sized_parts(batch, "batch") if size > 1)
        self.size = max(votes, key=lambda size: (votes[size], size)) if votes else 0

    def with_only(self, kept: Sequence[int], filler: int) -> Any:
        """The batch with every row but those in ``kept`` replaced by row ``filler``; each stays where it was."""
        keep = set(kept)
        return self.take([index if index in keep else filler for index in range(self.size)])

    def take(self, rows: Sequence[int]) -> Any:
        """Returns the batch made of these rows."""
        mine = {id(part) for _, part, size in _sized_parts(self.batch, "batch") if size == self.size}
        offsets: dict[int, Tensor] = {}
        return rebuild(self.batch, lambda _, item: _take(item, rows, offsets) if id(item) in mine else item)

    def parts(self) -> Iterator[tuple[str, list[Any]]]:
        """Each part with a row for each sample: the expression that reaches it, and its rows."""
        for path, part, size in _sized_parts(self.batch, "batch"):
            if size == self.size:
                yield path, _rows_of(part)


def _sized_parts(item: Any, path: str) -> Iterator[tuple[str, Any, int]]:
    """Returns the parts of a batch that may have a row for each sample, and how many rows; nothing inside of them."""
    size = _num_rows(item)
    if size is not None:
        yield path, item, size
        return
    for part in parts_of(item) or []:
        yield from _sized_parts(part.item, path + part.suffix)


def _num_rows(item: Any) -> int | None:
    if isinstance(item, PackedSequence):
        return int(item.batch_sizes[0])
    if isinstance(item, Tensor):
        return item.size(0) if item.dim() else None
    if is_array(item):
        return len(item) if item.ndim else None
    if _is_batch_of_graphs(item):
        return int(item.num_graphs)
    return len(item) if type(item) in (list, tuple) and _are_samples(item) else None


def _is_batch_of_graphs(item: Any) -> bool:
    """Tells whether it knows itself how to be taken apart, as the batches of PyTorch Geometric do."""
    return all(callable(getattr(type(item), name, None)) for name in ("to_data_list", "from_data_list"))


def _are_samples(items: Sequence[Any]) -> bool:
    """Tells whether a list has an item for each sample; it may as well be inputs and targets, or several views of all.

    Items of different kinds are no samples. Tensors of different leading size are; of equal size, the larger of both
    numbers is that of the samples, as three channels in each of eight images are not.
    """
    if not items or len({type(item) for item in items}) > 1:
        return False
    tensors = [next(iter(named_tensors(item)), (None, None))[1] for item in items]
    if any(tensor is None for tensor in tensors):
        return all(tensor is None for tensor in tensors)
    if len({(tensor.dim(), tensor.dtype) for tensor in tensors if tensor is not None}) > 1:
        return False
    sizes = {tensor.size(0) if tensor.dim() else 0 for tensor in tensors if tensor is not None}
    return len(sizes) > 1 or len(items) > max(sizes)


def _take(item: Any, rows: Sequence[int], offsets: dict[int, Tensor]) -> Any:
    if isinstance(item, PackedSequence):
        padded, lengths = pad_packed_sequence(item)
        chosen = torch.tensor(rows, device="cpu")
        return pack_padded_sequence(padded[:, chosen.to(padded.device)], lengths[chosen], enforce_sorted=False)
    if isinstance(item, Tensor):
        return _take_tensor(item, rows, offsets)
    if is_array(item):
        return item[list(rows)]
    if _is_batch_of_graphs(item):
        graphs = item.to_data_list()
        return type(item).from_data_list([graphs[row] for row in rows])
    return type(item)(rebuild(item[row], lambda _, part: part) for row in rows)  # copies: a step may write to them


def _take_tensor(tensor: Any, rows: Sequence[int], offsets: dict[int, Tensor]) -> Tensor:
    index = torch.tensor(rows, device=tensor.device)
    if not tensor.is_nested:
        if tensor.layout in (torch.strided, torch.sparse_coo):
            return tensor.index_select(0, index)
        return tensor.to_sparse_coo().index_select(0, index).to_sparse(layout=tensor.layout)
    chosen = [tensor.unbind()[row] for row in rows]
    if tensor.layout != torch.jagged:
        return torch.nested.nested_tensor(chosen)
    own = tensor.offsets()
    if id(own) not in offsets:  # tensors that shared their offsets still must, to be added to each other
        lengths = own.diff()[index]
        offsets[id(own)] = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.nested.nested_tensor_from_jagged(torch.cat(chosen), offsets[id(own)])


def _rows_of(part: Any) -> list[Any]:
    if isinstance(part, PackedSequence):
        padded, lengths = pad_packed_sequence(part)
        return [padded[: int(length), row] for row, length in enumerate(lengths)]
    if isinstance(part, Tensor):
        dense = part if part.layout in (torch.strided, torch.jagged) else part.to_dense()
        return list(dense.unbind())
    return list(part.to_data_list()) if _is_batch_of_graphs(part) else list(part)

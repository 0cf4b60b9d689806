"""Real data for the studies: what ships with Python and scikit-learn, or the well-known sets from a folder.

Splits are fixed, and nothing leaks: repeated paragraphs are removed before a text is split.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset


class UsageError(Exception):
    """Something the user typed, or a file the user named, cannot be used; the text is one clear line."""


@dataclass(frozen=True)
class Text:
    """A text as symbol numbers, split by paragraphs.

    Attributes:
        source: what it is, with size and hash, for the head of a table.
        symbols: its characters; the number of one is its index here.
        train: symbol numbers of the training paragraphs, in order.
        val: the same for every tenth paragraph, none of which occurs in ``train``.
        unigram_bits: bits per character of ``val`` for a model that knows only how often each symbol occurs.
    """

    source: str
    symbols: str
    train: Tensor
    val: Tensor
    unigram_bits: float


def text(path: str | None = None) -> Text:
    """English text that comes with Python (the topics of ``help()``), or any UTF-8 file.

    Paragraphs (parts between blank lines) have their white space folded; each is kept once; every tenth goes to
    validation.
    """
    if path is None:
        from pydoc_data.topics import topics

        name, raw = f"pydoc_data.topics of Python {platform.python_version()}", "\n".join(topics.values())
    else:
        name, raw = Path(path).name, _read_text(Path(path))
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", raw))
    paragraphs = list(dict.fromkeys(part for part in parts if part))
    if len(paragraphs) < 10:
        raise UsageError(f"{name} has {len(paragraphs)} different paragraphs (separated by blank lines); 10 are needed")
    whole = "\n".join(paragraphs)
    symbols = "".join(sorted(set(whole)))
    number = {symbol: index for index, symbol in enumerate(symbols)}
    parts_of = {
        "train": [p for i, p in enumerate(paragraphs) if i % 10 != 9],
        "val": [p for i, p in enumerate(paragraphs) if i % 10 == 9],
    }
    train, val = (torch.tensor([number[c] for c in "\n".join(parts)]) for parts in parts_of.values())
    count = torch.bincount(train, minlength=len(symbols)) + 1.0  # a symbol may occur in val alone
    return Text(
        source=f"{name}: {len(train):,} + {len(val):,} characters, {len(symbols)} symbols, "
        f"sha256 {hashlib.sha256(whole.encode()).hexdigest()[:12]}",
        symbols=symbols,
        train=train,
        val=val,
        unigram_bits=float(-(count / count.sum()).log2()[val].mean()),
    )


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})"
        ) from error
    if not raw.strip():
        raise UsageError(f"{path} is empty")
    return raw


@dataclass(frozen=True)
class Images:
    """Images of ten classes, pixels in [0, 1], shape ``[n, channels, side, side]``."""

    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def standardized(self) -> Images:
        """Mean 0 and deviation 1 over all pixels of the training images."""
        mean, std = self.train_x.mean(), self.train_x.std()
        x = ((part - mean) / std for part in (self.train_x, self.test_x))
        return Images(self.source, next(x), self.train_y, next(x), self.test_y)

    def centered(self) -> Images:
        """Pixels in [-1, 1], the range of a tanh."""
        return Images(self.source, 2 * self.train_x - 1, self.train_y, 2 * self.test_x - 1, self.test_y)

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]

    @property
    def side(self) -> int:
        return self.train_x.shape[2]

    @property
    def num_pixels(self) -> int:
        return self.train_x[0].numel()


def images(data_dir: str | None = None) -> Images:
    """scikit-learn's handwritten digits, or MNIST or CIFAR-10 (both of its formats) from a folder."""
    if data_dir is None:
        return _digits()
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UsageError(f"data folder {folder} does not exist")
    readers = {
        "data_batch_1.bin": _cifar10_binary,
        "data_batch_1": _cifar10_python,
        "train-images-idx3-ubyte*": _mnist,
        "train-images.idx3-ubyte*": _mnist,
    }
    for pattern, read in readers.items():
        found = sorted(folder.rglob(pattern))
        if found:
            return read(found[0].parent)
    raise UsageError(
        f"{folder} holds neither CIFAR-10 (data_batch_1.bin or data_batch_1) nor MNIST (train-images-idx3-ubyte[.gz])"
    )


def _digits() -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=450, stratify=y, random_state=0)
    return _images(
        "scikit-learn digits", parts[0].reshape(-1, 1, 8, 8), parts[2], parts[1].reshape(-1, 1, 8, 8), parts[3], 16
    )


def _images(
    name: str, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, top: int
) -> Images:
    x = [torch.tensor(part, dtype=torch.float32) / top for part in (train_x, test_x)]
    y = [torch.tensor(part, dtype=torch.int64) for part in (train_y, test_y)]
    side = f"{train_x.shape[-1]}x{train_x.shape[-1]}"
    return Images(f"{name}: {len(y[0]):,} + {len(y[1]):,} images of {side}", x[0], y[0], x[1], y[1])


def _mnist(folder: Path) -> Images:
    def read(stem: str, kind: str) -> np.ndarray:
        found = sorted(folder.glob(f"{stem}[-.]{kind}-ubyte*"))
        if not found:
            raise UsageError(f"{folder} has no {stem}-{kind}-ubyte")
        raw = _read_bytes(found[0])
        dims = raw[3] if len(raw) > 3 else 0
        header = 4 + 4 * dims
        shape = np.frombuffer(raw[4:header], dtype=">u4")
        if raw[:3] != b"\0\0\x08" or len(raw) != header + int(np.prod(shape)):
            raise UsageError(f"{found[0]} is not a whole IDX file of bytes")
        return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)

    train_x, test_x = (read(stem, "idx3")[:, None] for stem in ("train-images", "t10k-images"))
    train_y, test_y = (read(stem, "idx1") for stem in ("train-labels", "t10k-labels"))
    return _images("MNIST", train_x, train_y, test_x, test_y, 255)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _cifar10_binary(folder: Path) -> Images:
    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        raw = np.frombuffer(_read_bytes(path), dtype=np.uint8)
        if len(raw) == 0 or len(raw) % 3073:
            raise UsageError(f"{path} is not a CIFAR-10 binary file: {len(raw)} bytes are not records of 3073")
        records = raw.reshape(-1, 3073)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]

    return _cifar10(read(path) for path in _cifar10_paths(folder, ".bin"))


def _cifar10_python(folder: Path) -> Images:
    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            with path.open("rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            return np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"])
        except (OSError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise UsageError(f"{path} is not a CIFAR-10 batch: {error}") from error

    return _cifar10(read(path) for path in _cifar10_paths(folder, ""))


def _cifar10_paths(folder: Path, suffix: str) -> list[Path]:
    # the first batches may be all that a user has; the test batch is needed
    return [*sorted(folder.glob(f"data_batch_[1-5]{suffix}")), folder / f"test_batch{suffix}"]


def _cifar10(batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> Images:
    *train, test = batches
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _images("CIFAR-10", train_x, train_y, *test, 255)


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of plain values and NumPy arrays; anything else in it is refused, so no code of the file runs."""

    def find_class(self, module: str, name: str) -> object:
        found = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # its module differs between NumPy 1 and 2
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, as Python 3 writes them for 2
        }.get((module.rpartition(".")[2], name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


def batches(*tensors: Tensor, size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    """A loader that takes whole batches out of tensors at once: far faster than one sample after the other.

    ``drop_last`` for training: of 1,347 images three are left over, and batch normalization over three samples spoils
    its running averages (0.25 instead of 0.96 test accuracy in a network of 20 layers).
    """
    dataset = TensorDataset(*tensors)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(order, size, drop_last), batch_size=None)

from __future__ import annotations

import gzip
import os
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from harness import data

TEXT = "\n\n".join(f"Paragraph   number {n},\nof many: {'x' * n}" for n in range(20))


def test_the_bundled_text_is_the_documented_one_or_says_which_it_is():
    text = data.text()
    assert re.search(r"sha256 [0-9a-f]{12}$", text.source)
    assert len(text.train) > 200_000
    assert 4.7 < text.unigram_bits < 4.9


def test_no_paragraph_of_validation_occurs_in_training(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT + "\n\n" + TEXT.replace("   ", " "))  # every paragraph twice, but for white space
    text = data.text(str(file))

    def paragraphs(numbers):
        return "".join(text.symbols[n] for n in numbers.tolist()).split("\n")

    train, val = paragraphs(text.train), paragraphs(text.val)
    assert len(train) == 18
    assert len(val) == 2
    assert not set(train) & set(val)


def test_any_script_and_alphabet_is_read(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Знак {n} № {'日' * n}" for n in range(12)), encoding="utf-8")
    assert "日" in data.text(str(file)).symbols


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "cannot read the text", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n\n ", "is empty", id="blank"),
        pytest.param("naïve".encode("latin-1"), "is not UTF-8 text (byte 2 is 0xef)", id="latin-1"),
        pytest.param(b"one paragraph only", "has 1 different paragraphs", id="too few paragraphs"),
    ],
)
def test_an_unusable_text_is_named_with_its_reason(tmp_path, content, says):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(data.UsageError, match=re.escape(says)):
        data.text(str(file))


def test_digits_have_a_fixed_stratified_split():
    images = data.images()
    assert images.train_x.shape == (1347, 1, 8, 8)
    assert images.test_x.shape == (450, 1, 8, 8)
    assert torch.bincount(images.test_y).min() >= 43
    assert torch.equal(images.test_x, data.images().test_x)
    assert 0 <= images.train_x.min() < images.train_x.max() == 1


def test_standardizing_uses_the_training_images_only():
    images = data.images().standardized()
    assert images.train_x.mean().abs() < 1e-5
    assert images.train_x.std() == pytest.approx(1, abs=1e-5)
    assert images.test_x.mean().abs() > 1e-5


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, opener=open, suffix="", dot="-"):
    rng = np.random.default_rng(0)
    for stem, count in (("train", 30), ("t10k", 10)):
        for kind, shape in ((f"images{dot}idx3", (count, 28, 28)), (f"labels{dot}idx1", (count,))):
            with opener(folder / f"{stem}-{kind}-ubyte{suffix}", "wb") as file:
                file.write(idx(rng.integers(0, 10, shape, dtype=np.uint8)))


@pytest.mark.parametrize(
    "options", [{}, {"opener": gzip.open, "suffix": ".gz"}, {"dot": "."}], ids=["plain", "gzip", "dotted names"]
)
def test_mnist_files_are_read(tmp_path, options):
    folder = tmp_path / "MNIST" / "raw"  # where torchvision puts them
    folder.mkdir(parents=True)
    write_mnist(folder, **options)
    images = data.images(str(tmp_path))
    assert images.train_x.shape == (30, 1, 28, 28)
    assert images.test_y.shape == (10,)
    assert images.source == "MNIST: 30 + 10 images of 28x28"
    assert images.train_x.max() <= 9 / 255


def test_a_cut_mnist_file_is_named(tmp_path):
    write_mnist(tmp_path)
    whole = (tmp_path / "t10k-images-idx3-ubyte").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(whole[:-1])
    with pytest.raises(data.UsageError, match="t10k-images-idx3-ubyte is not a whole IDX file"):
        data.images(str(tmp_path))


def cifar_batch(seed: int, count: int = 6) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count).tolist()


def test_both_formats_of_cifar10_hold_the_same_images(tmp_path):
    binary, pickled = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-py"
    binary.mkdir()
    pickled.mkdir()
    for seed, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        pixels, labels = cifar_batch(seed)
        records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
        (binary / f"{name}.bin").write_bytes(records.tobytes())
        (pickled / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
    one, other = data.images(str(binary)), data.images(str(pickled))
    assert one.train_x.shape == (12, 3, 32, 32)
    assert one.source == "CIFAR-10: 12 + 6 images of 32x32"
    assert torch.equal(one.train_x, other.train_x)
    assert torch.equal(one.test_y, other.test_y)
    red = cifar_batch(0)[0][0, :1024].reshape(32, 32)
    assert torch.equal(one.train_x[0, 0], torch.tensor(red) / 255)


def pickle_of_python_2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What the published archive holds: byte strings, and an array of NumPy's first versions."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    raw = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    state = b"(K\x01K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", 3072) + b"\x86" + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + state + short(b"labels") + numbers + b"u."


def test_the_published_cifar10_archive_is_read(tmp_path):
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle_of_python_2(*cifar_batch(0)))
    images = data.images(str(tmp_path))
    pixels, labels = cifar_batch(0)
    assert torch.equal(images.train_x, torch.tensor(pixels.reshape(-1, 3, 32, 32)) / 255)
    assert images.test_y.tolist() == labels


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("/nonexistent/never-made",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Malicious()}))
    with pytest.raises(data.UsageError, match=r"data_batch_1 is not a CIFAR-10 batch: it asks for (posix|nt)\.mkdir"):
        data.images(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param(None, b"", "holds neither CIFAR-10", id="empty folder"),
        pytest.param("data_batch_1.bin", b"x" * 3000, "3000 bytes are not records of 3073", id="cut CIFAR-10"),
        pytest.param("train-images-idx3-ubyte.gz", b"no gzip", "cannot read", id="no gzip"),
    ],
)
def test_an_unusable_folder_is_named_with_its_reason(tmp_path, name, content, says):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(data.UsageError, match=says):
        data.images(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(data.UsageError, match="does not exist"):
        data.images(str(tmp_path / "none"))


def test_a_loader_gives_whole_batches_in_order():
    x = torch.arange(10)
    assert [batch[0].tolist() for batch in data.batches(x, size=4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(list(data.batches(x, size=4, drop_last=True))) == 2
    shuffled = torch.cat([batch[0] for batch in data.batches(x, size=4, shuffle=True)])
    assert shuffled.tolist() != x.tolist()
    assert sorted(shuffled.tolist()) == x.tolist()

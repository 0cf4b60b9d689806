"""Checksums are TensorBoard's, bit for bit."""

import random

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard.tensorboard.checksum import crc32c, quicken


@pytest.mark.parametrize("size", [0, 8, 511, 512, 513, 640, 1000, 4096, 4097, 65_535, 100_001])
def test_the_checksum_is_that_of_the_plain_loop(size):
    content = random.Random(size).randbytes(size)
    assert crc32c(content) == pywrap_tensorflow.crc32c(content)


@pytest.mark.parametrize("content", [b"\0" * 5000, b"\xff" * 5000, b"\0" * 4999 + b"\1"], ids=["zeros", "ones", "last"])
def test_the_checksum_of_uniform_bytes_is_right(content):
    assert crc32c(content) == pywrap_tensorflow.crc32c(content)


def test_a_file_that_is_written_faster_is_the_same_file(tmp_path):
    files = []
    for name in ("plain", "quick"):
        writer = SummaryWriter(str(tmp_path / name))
        file_writer = writer._get_file_writer()
        if name == "quick":
            quicken(file_writer)
            quicken(file_writer)
        for step, length in enumerate((1, 600, 20_000)):
            writer.add_text("text", "word " * length, step, walltime=float(step))
        writer.close()
        (path,) = (tmp_path / name).iterdir()
        files.append(path.read_bytes()[-1000:])
        assert sum(len(event.summary.value) for event in EventFileLoader(str(path)).Load()) == 3
    assert files[0] == files[1]


def test_a_writer_that_is_built_otherwise_is_left_alone():
    quicken(object())
    quicken(None)

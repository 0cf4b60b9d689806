import numpy as np
import pytest
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR

from lightning_gradguard.record import Finding
from lightning_gradguard.tensorboard.diagnosis import DiagnosisText, finding_markdown
from tests.tensorboard.synthetic import VANISHING, make_record


def record(step, *findings, **changes):
    return make_record(step, ("a", "b"), np.ones(2), findings=findings, **changes)


def test_a_finding_reads_as_what_where_why_and_what_to_do():
    text = finding_markdown(VANISHING)
    assert text.startswith("### ✖ vanishing-over-depth")
    assert VANISHING.message in text
    assert "**Layers:** `blocks.0`, `blocks.1`, `blocks.2`" in text
    assert "**Likely causes:** saturating activation with a bad scale; no normalization." in text
    assert "1. initialize for the activation (Xavier for tanh)\n1. add normalization" in text
    assert "*Step 40, held for 12 records.*" in text


def test_a_bare_finding_has_no_empty_headings():
    text = finding_markdown(Finding("noisy", "info", "A little noisy.", 3))
    assert text == "### ℹ noisy\n\nA little noisy.\n\n*Step 3.*"


def test_many_layers_are_counted_not_listed():
    text = finding_markdown(Finding("r", "warning", "m", 0, layers=tuple(f"l{i}" for i in range(40))))
    assert "`l5` and 34 more" in text
    assert "l6" not in text


def test_the_text_is_written_when_a_rule_fires_not_at_every_record():
    text = DiagnosisText()
    assert text.values(record(0)) == []
    (value,) = text.values(record(1, VANISHING))
    assert value.tag == "gradguard/diagnosis"
    assert text.values(record(2, VANISHING)) == []
    assert text.values(record(3)) == []
    assert len(text.values(record(4, VANISHING))) == 1


@pytest.mark.parametrize("optimizer", [0, 1])
def test_two_optimizers_have_a_text_each(optimizer):
    (value,) = DiagnosisText().values(record(1, VANISHING, optimizer=optimizer, num_optimizers=2))
    assert value.tag == f"gradguard/diagnosis/opt{optimizer}"


def test_the_text_plugin_finds_it():
    (value,) = DiagnosisText().values(record(1, VANISHING))
    assert value.metadata.plugin_data.plugin_name == "text"
    assert value.metadata.data_class == DATA_CLASS_TENSOR
    assert value.tensor.string_val[0].decode().startswith("### ✖")

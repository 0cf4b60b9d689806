"""Findings in words, for TensorBoard's Text tab."""

from __future__ import annotations

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.plugins.text.metadata import create_summary_metadata

from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.tensorboard.protos import string_value

_SIGN = {"info": "ℹ", "warning": "⚠", "critical": "✖"}
_SHOWN_LAYERS = 6


class DiagnosisText:
    """Turns findings into one Markdown text per record; says nothing where there is nothing new to say."""

    def __init__(self) -> None:
        self._said: dict[int, frozenset[tuple[str, str]]] = {}

    def values(self, record: StepRecord) -> list[Summary.Value]:
        """Returns one text value if a rule fired that did not hold at the last record, else none."""
        now = frozenset((finding.rule, finding.severity) for finding in record.findings)
        news = now - self._said.get(record.optimizer, frozenset())
        self._said[record.optimizer] = now
        if not news:
            return []
        tag = "gradguard/diagnosis" + (f"/opt{record.optimizer}" if record.num_optimizers > 1 else "")
        metadata = create_summary_metadata(display_name=tag, description="What the gradients say, and what cures it.")
        metadata.data_class = DATA_CLASS_TENSOR  # without it TensorBoard does not find the text
        text = "\n\n".join(finding_markdown(finding) for finding in record.findings)
        return [string_value(tag, text.encode(), metadata)]


def finding_markdown(finding: Finding) -> str:
    """Returns one finding as Markdown: what, the evidence, where, why, and what to do about it."""
    lines = [f"### {_SIGN[finding.severity]} {finding.rule}", finding.message]
    if finding.layers:
        names = ", ".join(f"`{layer}`" for layer in finding.layers[:_SHOWN_LAYERS])
        more = len(finding.layers) - _SHOWN_LAYERS
        lines.append(f"**Layers:** {names}" + (f" and {more} more" if more > 0 else ""))
    if finding.causes:
        lines.append("**Likely causes:** " + "; ".join(finding.causes) + ".")
    if finding.remedies:
        lines.append("**Try, in this order:**\n\n" + "\n".join(f"1. {remedy}" for remedy in finding.remedies))
    since = f"Step {finding.step:,}" + ("" if finding.until is None else f" until step {finding.until:,}")
    since += f", held for {finding.count:,} records" if finding.count > 1 else ""
    lines.append(f"*{since}.*")
    return "\n\n".join(lines)

"""How a run went, in a few numbers and findings: what every printer prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_gradguard.record import Finding, Severity
from lightning_gradguard.report.picture import Picture
from lightning_gradguard.tensorboard.events import finite
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, STEP_STATS

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")  # least grave first


@dataclass(frozen=True)
class Summary:
    """How one optimizer of one run went.

    Attributes:
        run: name of the run.
        optimizer: index of the optimizer.
        steps: optimizer steps that the records speak of.
        last_step: x-axis of the last record.
        layers: how many were watched.
        norm: median total norm; ``None`` if none was finite.
        largest: largest finite total norm.
        clipped: steps that were clipped, or would have been in a dry run; ``None`` without a policy.
        nonfinite: steps whose gradients were not finite, overflows under a loss scaler left out.
        skipped: steps that moved no weight; ``None`` where it is not known.
        spikes: steps far above the usual.
        loss: the last one; ``None`` where it is not known.
        findings: what the rules found, in the order in which it is to be told.
        profile: layers in the order of the forward pass, each with its median norm; ``None``: it never had one.
        dry_run: whether the policy only said what it would have clipped.
    """

    run: str
    optimizer: int
    steps: int
    last_step: int
    layers: int
    norm: float | None
    largest: float | None
    clipped: int | None
    nonfinite: int
    skipped: int | None
    spikes: int
    loss: float | None
    findings: tuple[Finding, ...]
    profile: tuple[tuple[str, float | None], ...]
    dry_run: bool = False

    @property
    def name(self) -> str:
        """The run, and the optimizer unless it is the first."""
        return self.run if self.optimizer == 0 else f"{self.run} opt{self.optimizer}"

    @property
    def gravest(self) -> Finding | None:
        """The first of the gravest findings."""
        return gravest(self.findings)

    @property
    def verdict(self) -> str:
        """The gravest finding, or what else went wrong, in a few words."""
        if self.gravest is not None:
            more = f" and {len(self.findings) - 1} more" if len(self.findings) > 1 else ""
            return f"{self.gravest.severity}: {self.gravest.rule}{more}"
        return f"{plural(self.nonfinite, 'step')} not finite" if self.nonfinite else "nothing to report"

    def as_json(self) -> dict[str, Any]:
        """All of it as values that strict JSON can carry; the verdict among them."""
        values = {**asdict(self), "profile": [list(entry) for entry in self.profile], "verdict": self.verdict}
        return dict(finite(values))

    @property
    def counts(self) -> str:
        """Steps, and what happened to them, in words."""
        clipped = "would be clipped (dry run)" if self.dry_run else "clipped"
        parts = [] if self.clipped is None else [share(self.clipped, self.steps, clipped)]
        if self.nonfinite and self.nonfinite == self.skipped:
            parts.append(share(self.nonfinite, self.steps, "not finite and skipped"))
        else:
            parts += [share(self.skipped, self.steps, "skipped")] if self.skipped is not None else []
            parts += [share(self.nonfinite, self.steps, "not finite")] if self.nonfinite else []
        parts.append(plural(self.spikes, "spike"))
        return ", ".join([plural(self.steps, "step"), *parts])


def summarize(picture: Picture) -> Summary:
    """How the optimizer of a picture went."""
    flow, counts = picture.flow, picture.events["counts"]
    head = flow.matrices[:, :HEAD_ROWS].reshape(len(flow.steps), -1).astype(np.float64)
    step = dict(zip(STEP_STATS, head.T, strict=True))
    finite = step["total_norm"][np.isfinite(step["total_norm"])]
    has_policy = bool((step["coefficient"] >= 0).any())
    return Summary(
        run=picture.run,
        optimizer=picture.optimizer,
        steps=int(step["num_steps"].sum()),
        last_step=int(flow.steps[-1]),
        layers=len(flow.layers),
        norm=float(np.median(finite)) if len(finite) else None,
        largest=float(finite.max()) if len(finite) else None,
        clipped=int(step["num_clipped"].sum()) if has_policy else None,
        nonfinite=counts.get("nonfinite", 0) + counts.get("rollback", 0),
        skipped=picture.skipped,
        spikes=counts.get("spike", 0),
        loss=picture.loss,
        findings=tuple(finding_of(values) for values in picture.events["findings"]),
        profile=_profile(picture),
        dry_run=flow.dry_run,
    )


def gravest(findings: Sequence[Finding]) -> Finding | None:
    """The first of the gravest findings; ``None`` if there is none."""
    return max(findings, key=lambda finding: SEVERITIES.index(finding.severity), default=None)


def share(count: int, total: int, what: str) -> str:
    """A count beside what it is a part of.

    Example:
        >>> share(3, 12, "clipped"), share(0, 12, "skipped"), share(1, 4000, "skipped")
        ('3 clipped (25 %)', 'none skipped', '1 skipped (0.025 %)')
    """
    if count == 0:
        return f"none {what}"
    return f"{count:,} {what} ({100 * count / max(total, 1):.2g} %)" if count < total else f"all {what}"


def plural(count: int, what: str) -> str:
    """A count and what is counted.

    Example:
        >>> plural(1, "step"), plural(1200, "step"), plural(0, "spike")
        ('1 step', '1,200 steps', 'no spike')
    """
    return f"{count:,} {what}s" if count > 1 else f"1 {what}" if count else f"no {what}"


def finding_of(values: Mapping[str, Any]) -> Finding:
    """The finding that an event log holds, at the step at which it was first raised."""
    return Finding(
        rule=values["rule"],
        severity=values["severity"],
        message=values["message"],
        step=int(values.get("first_step", values["step"])),
        layers=tuple(values.get("layers", ())),
        evidence=dict(values.get("evidence", {})),
        causes=tuple(values.get("causes", ())),
        remedies=tuple(values.get("remedies", ())),
        count=int(values.get("count", 1)),
        until=values.get("until"),
    )


def _profile(picture: Picture) -> tuple[tuple[str, float | None], ...]:
    norms = picture.flow.matrices[:, HEAD_ROWS:, 0]
    kept = np.where(np.isfinite(norms) & (norms >= 0), norms, np.nan)
    profile: list[tuple[str, float | None]] = []
    for index, layer in enumerate(picture.flow.layers):
        known = kept[:, index][~np.isnan(kept[:, index])]
        profile.append((layer, float(np.median(known)) if len(known) else None))
    return tuple(profile)

"""What a step was: plain data for every view, and the interface of a view."""

from __future__ import annotations

import functools
import html
import json
import math
from array import array
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal

Verdict = Literal["ok", "clipped", "skipped", "overflow", "rolled_back", "nonfinite"]
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Finding:
    """One diagnosis: what is wrong, how sure, and what cures it.

    Attributes:
        rule: stable id of the rule that fired, e.g. ``"vanishing-over-depth"``.
        severity: ``"info"``, ``"warning"`` or ``"critical"``.
        message: one sentence for a person, with the evidence in numbers.
        step: the step at which it was raised.
        layers: the layers it speaks of, in depth order.
        evidence: the numbers behind the message.
        causes: likely causes, most likely first.
        remedies: what to try, best first.
        count: how many records it has held for.
        until: step at which it was seen not to hold any more; ``None`` while it holds.
        place: of its rule among the rules, causes before what they lead to: views show findings in this order.
    """

    rule: str
    severity: Severity
    message: str
    step: int
    layers: tuple[str, ...] = ()
    evidence: dict[str, float] = field(default_factory=dict)
    causes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    count: int = 1
    until: int | None = None
    place: int = 0

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "place"}
        told = {
            k: v for k, v in shown.items() if k in ("rule", "severity", "message", "step") or v not in ((), {}, None)
        }
        return f"Finding({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: how grave, what, and the remedies in order."""
        held = f", held for {self.count:,} records" if self.count > 1 else ""
        held += "" if self.until is None else f", until step {self.until}"
        remedies = "".join(f"<li>{html.escape(remedy)}</li>" for remedy in self.remedies)
        return (
            f"<b>{self.severity}: {html.escape(self.rule)}</b> (since step {self.step}{held})<br>"
            f"{html.escape(self.message)}" + (f"<ol>{remedies}</ol>" if remedies else "")
        )


class Findings(list[Finding]):
    """A list of findings that a notebook shows in words."""

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{finding._repr_html_()}</li>" for finding in self)
        return f"<ul>{items}</ul>" if items else "<p>Nothing to report.</p>"


@dataclass(frozen=True)
class ActivationStats:
    """What a probe saw of one module's output on a sampled step.

    Attributes:
        module: its name in the model; a module that is called again in the same forward pass carries ``#2``, ``#3``.
        kind: its class, e.g. ``"ReLU"``, ``"Linear"``.
        rms: root mean square of the output.
        max_abs: largest absolute element of the output.
        range_used: ``max_abs`` over the largest finite number of the output's dtype.
        dtype: of the output, e.g. ``"float32"``.
        saturated: share of elements where a bounded activation is flat (tanh beyond ±0.98, sigmoid within 0.02 of 0
            or 1); ``None`` for modules that are not bounded.
        dead: share of units that were silent in every one of ``num_batches`` batches; ``None`` for modules that
            cannot die.
        num_batches: how many sampled batches ``dead`` speaks of.
        input_rms: root mean square of what went into the first module of the forward pass; ``None`` for the others.
        grad_underflow: share of the gradient at the output that is zero or too small for full precision in a 16-bit
            float; ``None`` for wider dtypes and where no gradient arrived.
        unit_spread: how much the units of a layer differ from each other, as the largest difference between two
            units in any sample over ``rms``; 0 where all units say the same; ``None`` where there is one unit.
        sample_spread: how much the output differs from sample to sample, likewise, over a few samples; 0 where it is
            the same for all.
        entropy: of a softmax or attention, mean over rows, over that of a uniform one; ``None`` for others.
        max_logit: largest attention logit, after scaling; ``None`` for others and where it was not seen.
    """

    module: str
    kind: str
    rms: float
    max_abs: float
    range_used: float
    dtype: str
    saturated: float | None = None
    dead: float | None = None
    num_batches: int = 1
    input_rms: float | None = None
    grad_underflow: float | None = None
    unit_spread: float | None = None
    sample_spread: float | None = None
    entropy: float | None = None
    max_logit: float | None = None


@dataclass(frozen=True)
class BatchStats:
    """What one tensor of a batch looks like.

    Attributes:
        name: where it is in the batch, e.g. ``"0"`` or ``"image"``.
        rms: root mean square.
        spread: largest over median root mean square of its features (columns, or channels); 1 where there is one.
        varies: whether any two samples of the batch differ.
        floating: whether it holds real numbers, not classes or tokens.
    """

    name: str
    rms: float
    spread: float = 1.0
    varies: bool = True
    floating: bool = True


@dataclass(frozen=True)
class LossStats:
    """What a loss function of torch was given, on a sampled step.

    Attributes:
        kind: ``"cross-entropy"``, ``"binary-cross-entropy"``, ``"squared-error"`` or ``"absolute-error"``;
            ``"kl-divergence"`` or ``"kl-divergence, log_target"``, with the targets' range and ``raw`` alone;
            ``"overlap"`` or, where the loss rises with it, ``"overlap, minimized"``, of a prediction with its targets,
            with the loss that is made of it, the targets' range and ``raw``.
        baseline: what the best constant prediction would have cost in this batch: the loss of a net that has learned
            nothing but the mean.
        probabilities: whether the input was probabilities already, where raw outputs are due.
        value: the loss itself.
        target_low: the smallest target, where targets are numbers.
        target_high: the largest.
        given_rms: root mean square of what was predicted, where that is numbers.
        raw: whether the input was no log-probabilities, or no probabilities, where these are due.
        alone: whether the softmax was over a single output, of which the loss is always zero.
    """

    kind: str
    baseline: float | None = None
    probabilities: bool = False
    value: float | None = None
    target_low: float | None = None
    target_high: float | None = None
    given_rms: float | None = None
    raw: bool = False
    alone: bool = False


@dataclass(frozen=True)
class RunningStats:
    """How the running statistics of a normalization stand that were zeros and ones when the run began.

    Attributes:
        module: its name in the model.
        left: share of the beginning that is left in them, from 1 down: ``(1 - momentum) ** batches``.
        batches: how many it has taken in.
        training: whether it is in training mode, where it normalizes by the batch.
    """

    module: str
    left: float
    batches: int
    training: bool


@dataclass(frozen=True)
class StepRecord:
    """All that is known of one optimizer step, as plain Python values.

    Norms are l2, in real units (no loss scale). ``None`` means *does not apply* (no gradient, no policy);
    NaN and infinity are real measurements and survive the way through JSON.

    Attributes:
        step: x-axis of the run: batches that stepped, the axis of the user's own metrics.
        optimizer: index of the optimizer, as in ``trainer.optimizers``.
        num_optimizers: how many there are; with one, tags carry no optimizer.
        layers: layer names in depth order, input first.
        layer_norms: gradient norm of each layer at this step; ``None``: no gradient.
        total_norm: gradient norm over all parameters of the optimizer, before clipping.
        post_clip_norm: the same after clipping: what the optimizer applies; ``None`` where it applies nothing.
        threshold: the norm (or largest absolute element) from which the policy clips at this step.
        coefficient: applied over raw norm; 1 means untouched.
        cosine: cosine between raw and applied gradient; 1 means the direction was kept.
        verdict: ``ok``, ``clipped``, ``skipped``, ``overflow`` (left to the loss scaler), ``rolled_back``, or
            ``nonfinite`` (let through: nobody guards, or the guard was told to).
        nonfinite_layers: layers with a NaN or an infinite element in their gradient.
        cause: what a bad step was: ``"nan"``, ``"inf"``; ``"buffer"``: the forward pass made a buffer non-finite;
            ``"loss"``: the loss was NaN although every gradient was finite, or, where several processes train a model
            without buffers, on one of them (which then made every gradient NaN); ``"exception"``: the step raised, and
            something was not finite; ``"square"``: finite, but too large for an optimizer that squares it;
            ``"spike"``: finite, but far above the usual; ``None`` for a good one.
        loss_scale: of the live ``GradScaler``, else ``None``.
        num_steps: optimizer steps since the last record, this one included.
        num_clipped: how many of them were clipped.
        num_nonfinite: how many of them were not finite.
        max_layer_norms: largest finite norm of each layer over those steps.
        max_total_norm: largest finite total norm over those steps.
        min_coefficient: smallest coefficient over those steps, whatever the policy.
        clip_rate: clipped steps over all steps of the run so far.
        nonfinite_total: non-finite steps of the run so far.
        skipped_total: steps of the run so far that moved no weight.
        weight_norms: weight norm of each layer, where measured: in the first record, and in the first of each 50
            steps of the optimizer after it. :class:`LastWeights` fills in the last known ones.
        findings: what the rules found at this step.
        layer_shapes: shapes of each layer's parameters in words, e.g. ``"64×32 + 64"``; the same at every record.
        min_layer_coefficients: smallest norm after clipping over norm before of each layer over those steps, for
            policies that clip tensors, units or elements apart; ``None``: use ``min_coefficient`` for all of them.
        update_ratios: update norm over weight norm of each layer, ‖Δθ‖ / ‖θ‖, where measured.
        clip_ratio: the gradient-to-weight ratio from which the policy clips (``ratio`` of AGC); ``None`` for a policy
            that does not go by it.
        loss: what was back-propagated, mean over the steps since the last record, where known.
        layer_sizes: number of elements of each layer's parameters.
        layer_kinds: class of the module that owns each layer, e.g. ``"Linear"``.
        trainable: whether any parameter of the layer requires a gradient now.
        depth: place of each layer in the forward pass, 0 first; ``None`` for a layer that was not seen to run.
        activations: what the probe saw on its last sampled step (the first record: on the very first one), in the
            order of the forward pass; each sample is reported by one record.
        temporal_norms: per recurrent module, the norm of the last output's gradient with respect to the input at
            each time step, first step first; each sample is reported by one record.
        early: whether it was made only because the step is sampled by the probes, between two logged steps.
        loss_std: standard deviation of the loss from step to step since the last record, where known.
        num_nonfinite_losses: how many losses since the last record were not finite; they do not enter ``loss``.
        learning_rates: the learning rate of each layer at this step, the largest of its parameters'.
        weight_decays: likewise.
        momentum: the largest momentum of a parameter group, or first beta of Adam and its kin; ``None`` without any.
        optimizer_kind: class of the optimizer, e.g. ``"AdamW"``.
        maximizes: whether a parameter group of the optimizer is set to maximize.
        batch: index of the batch in its epoch, where known.
        epoch: its epoch, where known.
        incident: what was saved of a bad step, in words, with the path of the bundle.
        inputs: what the tensors of the batch looked like on the last sampled step.
        losses: what loss functions were given on it.
        old_gradients: whether gradients of an earlier step were still there when the backward pass began.
        unoptimized: layers that get a gradient and are in no optimizer.
        frozen_last: frozen layers behind the last one that trains, through which gradients flow.
        frozen_zeros: frozen matrices that are all zero, in or beside layers whose gradient is zero.
        frozen_as_drawn: frozen layers that ran and whose weights are as torch draws them.
        waiting: backward passes since the last optimizer step, in a record that tells that none came (it has
            ``num_steps=0``, as one that tells that no parameter has a gradient).
        unregistered: places where weights are kept that get a gradient and that the model does not know of.
        running: normalizations of whose running statistics more than half is as it began, on a sampled step.
        cleared: whether the backward pass leads to the optimizer's parameters, in a record that tells that none has a
            gradient: something cleared them before the step.
        flows: whether the output of each layer had a gradient to pass on; ``None`` for one that was not seen to run.
        clip_outside: the norm at which the Trainer itself clips, after this record is made.
        total_norms: total norm of each step since the last record before clipping, oldest first, this step last, in
            float32: a step that was dropped too, and NaN and infinity as they were. ``None`` in records of an older
            version and in those of no step.
        steps_per_norm: how many steps each of them stands for. 1 up to 4,096 steps between two records; beyond that
            each is the largest finite norm of 2, 4, ... steps, and NaN where none was finite.
        dry_run: whether the policy decided and clipped nothing: threshold, coefficient, ``num_clipped``,
            ``min_coefficient`` and ``clip_rate`` are what it would have done, and ``post_clip_norm`` is the raw norm.
    """

    step: int
    optimizer: int
    num_optimizers: int
    layers: tuple[str, ...]
    layer_norms: tuple[float | None, ...]
    total_norm: float
    post_clip_norm: float | None
    threshold: float | None
    coefficient: float | None
    cosine: float | None
    verdict: Verdict
    nonfinite_layers: tuple[str, ...]
    cause: Literal["nan", "inf", "buffer", "loss", "exception", "square", "spike"] | None
    loss_scale: float | None
    num_steps: int
    num_clipped: int
    num_nonfinite: int
    max_layer_norms: tuple[float | None, ...]
    max_total_norm: float
    min_coefficient: float | None
    clip_rate: float | None
    nonfinite_total: int
    skipped_total: int
    weight_norms: tuple[float | None, ...] | None = None
    findings: tuple[Finding, ...] = ()
    layer_shapes: tuple[str, ...] | None = None
    min_layer_coefficients: tuple[float | None, ...] | None = None
    update_ratios: tuple[float | None, ...] | None = None
    clip_ratio: float | None = None
    loss: float | None = None
    layer_sizes: tuple[int, ...] | None = None
    layer_kinds: tuple[str, ...] | None = None
    trainable: tuple[bool, ...] | None = None
    depth: tuple[int | None, ...] | None = None
    activations: tuple[ActivationStats, ...] | None = None
    temporal_norms: dict[str, tuple[float, ...]] | None = None
    early: bool = False
    loss_std: float | None = None
    num_nonfinite_losses: int = 0
    learning_rates: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    momentum: float | None = None
    optimizer_kind: str | None = None
    maximizes: bool | None = None
    batch: int | None = None
    epoch: int | None = None
    incident: str | None = None
    inputs: tuple[BatchStats, ...] | None = None
    losses: tuple[LossStats, ...] | None = None
    old_gradients: bool | None = None
    unoptimized: tuple[str, ...] | None = None
    frozen_last: tuple[str, ...] | None = None
    waiting: int | None = None
    clip_outside: float | None = None
    flows: tuple[bool | None, ...] | None = None
    total_norms: tuple[float, ...] | None = None
    steps_per_norm: int = 1
    dry_run: bool = False
    cleared: bool | None = None
    running: tuple[RunningStats, ...] | None = None
    unregistered: tuple[str, ...] | None = None
    frozen_zeros: tuple[str, ...] | None = None
    frozen_as_drawn: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        told: dict[str, Any] = {
            "step": self.step,
            "optimizer": self.optimizer,
            "verdict": self.verdict,
            "total_norm": self.total_norm,
        }
        further = {"cause": self.cause, "coefficient": self.coefficient, "loss": self.loss}
        told |= {name: value for name, value in further.items() if value is not None}
        shown = ", ".join(f"{name}={value!r}" for name, value in told.items())
        return f"StepRecord({shown}, layers={len(self.layers)}, findings={len(self.findings)})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the step in a line, its findings, and the norms of its layers to unfold."""
        optimizer = f", optimizer {self.optimizer}" if self.num_optimizers > 1 else ""
        numbers = {
            "norm": self.total_norm,
            "after clipping": self.post_clip_norm,
            "threshold": self.threshold,
            "loss": self.loss,
            "loss scale": self.loss_scale,
        }
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)
        bad = ", ".join(self.nonfinite_layers[:_SHOWN_LAYERS]) + (
            " …" if len(self.nonfinite_layers) > _SHOWN_LAYERS else ""
        )
        rows = "".join(
            f"<tr><td>{html.escape(layer)}</td><td>{'no gradient' if norm is None else f'{norm:.3e}'}</td></tr>"
            for layer, norm in zip(self.layers, self.layer_norms, strict=True)
        )
        return (
            f"<p><b>step {self.step}{optimizer}: {self.verdict}</b>, {shown}"
            + (f"<br>not finite: {html.escape(bad)}" if bad else "")
            + "</p>"
            + (Findings(self.findings)._repr_html_() if self.findings else "")
            + (f"<details><summary>{len(self.layers)} layers</summary><table>{rows}</table></details>" if rows else "")
        )

    def to_json(self) -> str:
        """Returns one line of strict JSON; NaN and infinities become the strings ``"nan"``, ``"inf"``, ``"-inf"``."""
        values = _encode(asdict(self))
        if self.total_norms is not None:  # nine digits tell a float32 from every other, and seventeen are its double's
            values["total_norms"] = [x if isinstance(x, str) else float(f"{x:.9g}") for x in values["total_norms"]]
        return json.dumps({"version": VERSION, **values}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> StepRecord:
        """Returns the record that :meth:`to_json` wrote, by this version of the library or another.

        What this version does not know is left out, and what the other did not write has its default: a number that
        no record of an older version has reads as *not known*.

        Raises:
            ValueError: if the line is not such a record; the message says what is missing.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"not a StepRecord: got {type(values).__name__}")
        missing = sorted(_REQUIRED - set(values))
        if missing:
            raise ValueError(f"not a StepRecord: fields that are missing: {missing}")
        found = _decode_fields(cls, {"findings": [], "activations": None, **values})
        found["findings"] = tuple(Finding(**_decode_fields(Finding, entry)) for entry in values.get("findings", ()))
        if (stats := values.get("activations")) is not None:
            found["activations"] = tuple(ActivationStats(**_decode_fields(ActivationStats, entry)) for entry in stats)
        for name, kind in (("inputs", BatchStats), ("losses", LossStats), ("running", RunningStats)):
            if (entries := values.get(name)) is not None:
                found[name] = tuple(kind(**_decode_fields(kind, entry)) for entry in entries)
        if found.get("total_norms") is not None:
            found["total_norms"] = tuple(array("f", found["total_norms"]))
        defaults: dict[str, Any] = {f.name: _UNKNOWN.get(f.name) for f in fields(cls) if f.default is MISSING}
        return cls(**{**defaults, **found})


_SHOWN_LAYERS = 6  # that are not finite, in a notebook
# Of the lines that to_json writes. It goes up when a field changes its meaning; new fields need no new version.
VERSION = 1
# Without these nothing can be shown; all others have a default when an older or newer version left them out.
_REQUIRED = frozenset({"step", "layers", "layer_norms", "total_norm", "verdict"})
_UNKNOWN: dict[str, Any] = {
    "optimizer": 0,
    "num_optimizers": 1,
    "nonfinite_layers": (),
    "num_steps": 1,
    "num_clipped": 0,
    "num_nonfinite": 0,
    "max_layer_norms": (),
    "max_total_norm": math.nan,
    "nonfinite_total": 0,
    "skipped_total": 0,
}
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that the class has, with tuples for lists and numbers for the names of NaN and infinity."""
    numeric = {f.name: "float" in str(f.type) for f in fields(cls)}  # a layer may well be called "inf"
    return {key: _decode(value, numeric[key]) for key, value in values.items() if key in numeric}


def _decode(value: Any, numeric: bool) -> Any:
    if isinstance(value, str) and numeric:
        return _SPECIAL[value]
    if isinstance(value, dict):
        return {key: _decode(item, numeric) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_decode(item, numeric) for item in value)
    return value


@functools.lru_cache(maxsize=32)  # records of a run hold the same depths
def forward_order(depth: tuple[int | None, ...]) -> tuple[int, ...]:
    """Returns indices of layers as the forward pass meets them, from the ``depth`` of a record.

    A layer that was not seen to run stays behind the one that it is registered after.

    Example:
        >>> forward_order((2, 0, None, 1))
        (1, 2, 3, 0)
    """
    keys = []
    last = -1
    for index, place in enumerate(depth):
        last = place if place is not None else last
        keys.append((last, index))
    return tuple(index for _, index in sorted(keys))


class LastWeights:
    """Gives records without weight norms the last known ones, so that gradients can be read relative to weights.

    Weights are measured once in 50 steps, so what is filled in is less than 50 steps old. In a training that goes well
    norms change by some per cent in that time; where weights blow up, ratios to them read too high, not too low.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[str, ...], tuple[float | None, ...]]] = {}

    def fill(self, record: StepRecord) -> StepRecord:
        """Returns the record with the last known norms, where it has none of its own and its layers are the same."""
        if record.weight_norms is not None:
            self._known[record.optimizer] = record.layers, record.weight_norms
            return record
        layers, norms = self._known.get(record.optimizer, ((), ()))
        return replace(record, weight_norms=norms) if norms and layers == record.layers else record

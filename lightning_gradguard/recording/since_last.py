"""What happened since the last record, folded on the device so that no step falls between two records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.clip.answer import Clip
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.guard.verdict import Decision, Over, Pair
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, by_layer
from lightning_gradguard.recording.step_norms import StepNorms

# Steps whose norms are kept until they are folded together: their cost is that of one, and their memory bounded.
_FOLD_EVERY = 32


@dataclass(frozen=True)
class Totals:
    """What was done with all steps of a run up to now.

    Attributes:
        steps: optimizer steps.
        clipped: how many were clipped; ``None`` without a policy.
        nonfinite: how many were not finite.
        skipped: how many moved no weight.
    """

    steps: int
    clipped: int | None
    nonfinite: int
    skipped: int


@dataclass(eq=False)
class LastStep:
    """What is kept of a step that was let through, for the record that ends a run: none of its gradients.

    Attributes:
        norms: of its gradients, ``[num_params]``.
        signals: ``[total norm, smallest coefficient, ...]``, floats or a vector.
        threshold: that its policy compared with, where there is one for all.
        coefficient: that scaled the whole gradient, where there is one for all.
        ratio: the gradient-to-weight ratio of its policy.
    """

    norms: Tensor
    signals: Pair
    threshold: float | Tensor | None
    coefficient: Tensor | None
    ratio: float | None

    def as_judgement(self, layout: Layout, present: tuple[bool, ...]) -> Over:
        """Returns the step as a judgement that a record can be made of; one host read.

        Args:
            layout: of its gradients.
            present: which of them were there.
        """
        total, coefficient = _tensor([self.signals[:2]], self.norms.device)[0]
        measurement = Measurement(layout, (None,) * len(self.norms), self.norms, total).with_present(present)
        clips = Clips(coefficient, ratio=self.ratio)
        if self.coefficient is not None:
            clips = Clips.of(total, [(measurement, Clip(self.threshold, self.coefficient))], ratio=self.ratio)
        return Over(
            Decision(measurement, clips), self.signals, clipped=bool(coefficient < 1.0)
        )  # host sync: a run ends


@dataclass
class Counters:
    """Counts of one optimizer: steps up to now, what was clipped or not finite up to the last record."""

    steps: int = 0
    skipped: int = 0
    clipped: Tensor | float = 0.0
    nonfinite: Tensor | float = 0.0

    def add(self, since: SinceLast) -> None:
        """Adds what happened since the last record."""
        self.clipped = self.clipped + since.num_clipped
        self.nonfinite = self.nonfinite + since.num_nonfinite

    def state_dict(self) -> dict[str, float]:
        """Returns the counts as numbers."""
        return {key: float(value) for key, value in vars(self).items()}  # host sync: a checkpoint is written

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.steps, self.skipped = int(state["steps"]), int(state["skipped"])
        self.clipped, self.nonfinite = state["clipped"], state["nonfinite"]


class SinceLast:
    """Folds the steps since the last record: largest norms, smallest coefficient, counts, and each step's total norm.

    Holds one number per layer and a few more, the norms of the last 31 steps at most, and one vector of total norms
    that does not grow, whatever the length of the run. What it tells is that of the last :meth:`fold`.

    Args:
        layout: the parameters of the optimizer.
        device: where their gradients live.

    Attributes:
        last: the last step that was added; ``None`` right after a record.
        total_norms: of each step since the last record, dropped ones too.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self.total_norms = StepNorms(device)
        self.reset()

    def reset(self) -> None:
        """Starts anew, after a record."""
        self.max_layer_norms = torch.zeros(len(self.layout.layers), dtype=self._dtype, device=self._device)
        self.max_total_norm = torch.zeros((), dtype=self._dtype, device=self._device)
        self.min_coefficient = torch.ones((), dtype=self._dtype, device=self._device)
        self.min_layer_coefficients: Tensor | None = None  # where no single coefficient scales everything
        self.num_clipped: Tensor | float = 0.0
        self.num_nonfinite: Tensor | float = 0.0
        self.num_steps = 0
        self.present: tuple[bool, ...] = (False,) * len(self.layout.params)
        self.last: LastStep | None = None
        self.total_norms.reset()
        self._steps: list[tuple[Tensor, Pair, Tensor]] = []
        self._single = False
        self._clipped: list[tuple[Tensor, Tensor, Tensor | float]] = []

    def add(self, measurement: Measurement, signals: Pair, clips: Clips) -> None:
        """Takes one step in; it is folded with others later, in one go.

        Args:
            measurement: of the raw gradients.
            signals: ``[total norm, smallest coefficient, ...]``, floats or a vector. A step whose total norm is not
                finite enters the counts only.
            clips: what the policies answered: whether the second signal is the one coefficient of all gradients.
        """
        self._count(measurement)
        self._steps.append((measurement.norms, signals, measurement.total))
        self.last = LastStep(measurement.norms, signals, clips.threshold, clips.single_coefficient, clips.ratio)
        self._single = self.last.coefficient is not None
        if len(self._steps) == _FOLD_EVERY:
            self.fold()

    def add_clipped(self, measurement: Measurement, signals: Pair, clips: Clips) -> None:
        """Takes in what clipping has left in a step, once it is done, where no single coefficient tells.

        A step of which a record tells already is not taken in again.

        Args:
            measurement: of the gradients before.
            signals: as of :meth:`add`.
            clips: that were carried out.
        """
        if not self.num_steps or clips.single_coefficient is not None:
            return
        self._clipped.append((measurement.norms, clips.norms_once_applied(measurement), signals[0]))
        if len(self._clipped) == _FOLD_EVERY:
            self.fold()

    def fold(self) -> None:
        """Brings all figures up to the last step."""
        if self._steps:
            self._fold_steps()
        if self._clipped:
            self._fold_clipped()

    def _fold_steps(self) -> None:
        norms = torch.stack([norms for norms, _, _ in self._steps])
        totals, coefficients = _tensor([pair[:2] for _, pair, _ in self._steps], self._device).to(self._dtype).unbind(1)
        # As they were measured: in the signals of a step that the device leaves out stands NaN.
        self.total_norms.extend(torch.stack([total for _, _, total in self._steps]))
        self._steps = []
        # One stack for up to 32 steps, since each call costs the same for one as for all. NaN would win every maximum.
        finite = totals.isfinite()
        layers = by_layer(self.layout, norms).where(finite.unsqueeze(1), 0.0)
        self.max_layer_norms = torch.maximum(self.max_layer_norms, layers.amax(0))
        self.max_total_norm = torch.maximum(self.max_total_norm, totals.where(finite, 0.0).amax())
        coefficients = coefficients.where(finite, 1.0)
        if self._single:
            self.min_coefficient = torch.minimum(self.min_coefficient, coefficients.amin())
        self.num_clipped = self.num_clipped + (coefficients < 1.0).sum()
        self.num_nonfinite = self.num_nonfinite + (~finite).sum()

    def add_dropped(self, measurement: Measurement) -> None:
        """Takes in a step that moves no weight: it is counted, its total norm enters the series and no maximum."""
        self._count(measurement)
        self.fold()
        self.total_norms.extend(measurement.total.reshape(1).to(self._device))

    def _fold_clipped(self) -> None:
        """Folds the norms after clipping over those before, of each layer and of the whole."""
        raw, left = (by_layer(self.layout, torch.stack(norms)) for norms in list(zip(*self._clipped, strict=True))[:2])
        finite = _tensor([total for _, _, total in self._clipped], self._device).isfinite() & raw.isfinite().all(1)
        self._clipped = []
        # What is left of nothing is nothing: 0/0 counts as untouched, as does a step that was not finite.
        layers = (left / raw).nan_to_num(1.0).clamp(max=1.0).where(finite.unsqueeze(1), 1.0).amin(0)
        whole = (torch.linalg.vector_norm(left, dim=1) / torch.linalg.vector_norm(raw, dim=1)).nan_to_num(1.0)
        before = self.min_layer_coefficients
        self.min_layer_coefficients = layers if before is None else torch.minimum(before, layers)
        self.min_coefficient = torch.minimum(self.min_coefficient, whole.clamp(max=1.0).where(finite, 1.0).amin())

    def _count(self, measurement: Measurement) -> None:
        """Counts a step, and notes which parameters had a gradient."""
        self.num_steps += 1
        if (present := measurement.present) != self.present:
            self.present = tuple(a or b for a, b in zip(present, self.present, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Returns the fold so far, with the layers it speaks of."""
        self.fold()
        smallest = self.min_layer_coefficients
        return {
            "layers": list(self.layout.layers),
            "max_layer_norms": self.max_layer_norms.clone(),
            **({} if smallest is None else {"min_layer_coefficients": smallest.clone()}),
            "present": list(self.present),
            "total_norms": self.total_norms.state_dict(),
            **{key: float(getattr(self, key)) for key in self._SCALARS},  # host sync: a checkpoint is written
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Goes on from :meth:`state_dict`; a fold over other layers is dropped: it is a picture, not training state.

        The series of total norms goes on whatever the layers are.

        Returns:
            Whether the fold is taken over.
        """
        self._steps, self._clipped = [], []
        if "total_norms" in state:  # a checkpoint of an older version has none
            self.total_norms.load_state_dict(state["total_norms"])
        if list(self.layout.layers) != state["layers"] or len(self.present) != len(state["present"]):
            return False
        self.max_layer_norms.copy_(state["max_layer_norms"])
        smallest = state.get("min_layer_coefficients")
        self.min_layer_coefficients = None if smallest is None else smallest.to(self.max_layer_norms)
        self.max_total_norm.fill_(state["max_total_norm"])
        self.min_coefficient.fill_(state["min_coefficient"])
        self.num_clipped, self.num_nonfinite = state["num_clipped"], state["num_nonfinite"]
        self.num_steps, self.present = int(state["num_steps"]), tuple(state["present"])
        return True

    _SCALARS = ("max_total_norm", "min_coefficient", "num_clipped", "num_nonfinite", "num_steps")


def _tensor(values: Sequence[Any], device: torch.device) -> Tensor:
    """Returns tensors stacked, or numbers of the host together as one tensor."""
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.tensor(values, dtype=torch.float64, device=device)

"""See, tame and survive, in one callback."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.clipping import AdaptiveGradientClipping
from lightning_gradguard.callbacks.guard import NonFiniteGuard
from lightning_gradguard.callbacks.monitor import GradientNormMonitor
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.guard.guard import Action
from lightning_gradguard.sinks import Sink


class GradGuard(GradientCallback):
    """All three roles at once: watches every layer, clips if told to, and keeps NaN away from the weights.

    The same as listing :class:`GradientNormMonitor`, :class:`AdaptiveGradientClipping` and :class:`NonFiniteGuard`.

    Args:
        clip: as for :class:`AdaptiveGradientClipping`; ``None`` leaves finite gradients alone.
        on_nonfinite: as ``action`` of :class:`NonFiniteGuard`; ``None`` lets everything through.
        rules: as for :class:`GradientNormMonitor`.
        log_every_n_steps: as for :class:`GradientNormMonitor`.
        patience: as for :class:`NonFiniteGuard`.
        incident_dir: as for :class:`NonFiniteGuard`; for its other settings list one beside
            ``GradGuard(on_nonfinite=None)``.
        sinks: as for :class:`GradientNormMonitor`.
        probe_every_n_steps: as for :class:`GradientNormMonitor`.
        silence: as for :class:`GradientNormMonitor`.
        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.

    Raises:
        ValueError, TypeError: for bad arguments.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_gradguard import ZClip
        >>> trainer = Trainer(callbacks=[GradGuard(clip=ZClip())], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        clip: ClipPolicy | Mapping[int | str, ClipPolicy | None] | None = None,
        on_nonfinite: Action | None = "skip",
        rules: Sequence[Rule] | None = None,
        log_every_n_steps: int | None = None,
        incident_dir: str | os.PathLike[str] | None = None,
        patience: int = 20,
        sinks: Sequence[Sink] | None = None,
        probe_every_n_steps: int | None = 50,
        silence: Sequence[str] = (),
        joint: bool = False,
    ) -> None:
        self._parts: list[GradientCallback] = [
            GradientNormMonitor(
                rules=rules,
                log_every_n_steps=log_every_n_steps,
                sinks=sinks,
                probe_every_n_steps=probe_every_n_steps,
                silence=silence,
                joint=joint,
            )
        ]
        if clip is not None:
            self._parts.append(AdaptiveGradientClipping(clip))
        if on_nonfinite is not None:
            self._parts.append(NonFiniteGuard(on_nonfinite, patience, incident_dir))

    def _contribute(self, plan: Plan) -> None:
        for part in self._parts:
            part._contribute(plan)

"""See, tame and survive, in one callback."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import get_args

from lightning_gradguard.arguments import check_choice, warn_without_effect
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.clipping import AdaptiveGradientClipping
from lightning_gradguard.callbacks.guard import NonFiniteGuard
from lightning_gradguard.callbacks.monitor import GradientNormMonitor
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.clipper import check_policies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.guard.guard import Action
from lightning_gradguard.sinks import Sink


class GradGuard(GradientCallback):
    """All three roles at once: watches every layer, clips if told to, and keeps NaN away from the weights.

    The same as listing :class:`GradientNormMonitor`, :class:`AdaptiveGradientClipping` and :class:`NonFiniteGuard`.

    Args:
        clip: a policy such as ``ZClip()`` for all optimizers; or a mapping from optimizer index, or from the ``"name"``
            of a parameter group, to a policy or ``None``. ``None`` leaves finite gradients alone.
        on_nonfinite: what becomes of a step whose gradients are not finite. ``"skip"`` drops it: no weight, momentum
            or buffer moves. ``"rollback"`` drops it, and after 3 in a row goes back to the last good state. ``"stop"``
            drops it and ends training in order. ``"raise"`` drops it and raises ``NonFiniteGradientError``. ``None``
            lets everything through.
        rules: diagnosis rules; ``None`` for the shipped set, ``[]`` for none.
        log_every_n_steps: how often records are made and logged, >= 1; ``None`` for the Trainer's own interval, so
            that gradients stand beside the user's metrics.
        incident_dir: where bad steps are saved for ``gradguard replay``; ``None`` saves nothing. Armed it costs some
            20 µs a batch. For more settings list a :class:`NonFiniteGuard` beside ``GradGuard(on_nonfinite=None)``.
        patience: bad steps in a row after which every action raises, >= 1. 20 lets a rare bad batch pass, and ends a
            run that will not recover before it has wasted much.
        sinks: further views of the records, such as ``JsonlSink("run/gradients.jsonl")``.
        probe_every_n_steps: how often activations, measured updates and gradients over time are sampled for the rules,
            >= 1; hooks live on those steps only. ``None``: never, and the rules that need them stay silent.
        silence: ids of rules to leave out, such as ``("clipping-always",)``; ``docs/diagnosis.md`` has them all.
        probe_eagerly: whether a compiled model runs uncompiled on sampled steps, so that its modules can be probed.
        prog_bar: whether the total norm stands in the progress bar.
        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.
        verbose: whether each new finding, and a summary when the run ends, is said through Lightning's logging.
        keep_records: whether records are written to ``gradguard.jsonl`` in the run's log folder, at most 4 MB, for
            ``gradguard report``. Not without a logger, nor beside a ``JsonlSink`` among ``sinks``.
        dry_run: whether ``clip`` decides and clips nothing: records and loggers tell what it would have done.

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
        probe_eagerly: bool = False,
        prog_bar: bool = False,
        joint: bool = False,
        verbose: bool = True,
        keep_records: bool = True,
        dry_run: bool = False,
    ) -> None:
        if clip is not None:
            check_policies(clip, "clip")
        else:
            warn_without_effect("GradGuard", "clip=None", {"dry_run": (dry_run, False)})
        if on_nonfinite is not None:
            check_choice(on_nonfinite, get_args(Action), "on_nonfinite")
        else:
            given = {"patience": (patience, 20), "incident_dir": (incident_dir, None)}
            warn_without_effect("GradGuard", "on_nonfinite=None", given)
        self.clip = clip
        self.on_nonfinite = on_nonfinite
        self.rules = rules
        self.log_every_n_steps = log_every_n_steps
        self.incident_dir = incident_dir
        self.patience = patience
        self.sinks = sinks
        self.probe_every_n_steps = probe_every_n_steps
        self.silence = tuple(silence)
        self.probe_eagerly = probe_eagerly
        self.prog_bar = prog_bar
        self.joint = joint
        self.verbose = verbose
        self.keep_records = keep_records
        self.dry_run = dry_run
        self._parts: list[GradientCallback] = [
            GradientNormMonitor(
                rules=rules,
                log_every_n_steps=log_every_n_steps,
                sinks=sinks,
                probe_every_n_steps=probe_every_n_steps,
                silence=silence,
                probe_eagerly=probe_eagerly,
                prog_bar=prog_bar,
                joint=joint,
                verbose=verbose,
                keep_records=keep_records,
            )
        ]
        if clip is not None:
            self._parts.append(AdaptiveGradientClipping(clip, dry_run=dry_run))
        if on_nonfinite is not None:
            self._parts.append(NonFiniteGuard(on_nonfinite, patience, incident_dir))

    def _contribute(self, plan: Plan) -> None:
        for part in self._parts:
            part._contribute(plan)

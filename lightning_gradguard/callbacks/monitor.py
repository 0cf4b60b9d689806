"""See: gradient norms of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lightning_gradguard.arguments import check_all, check_choice, check_interval
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.diagnose import Diagnosis, Rule, default_rules
from lightning_gradguard.measurement.layout import GroupBy
from lightning_gradguard.sinks import Sink


class GradientNormMonitor(GradientCallback):
    """Shows the gradient norm of every layer, of every optimizer, in the Trainer's loggers.

    Every optimizer step is measured, ``norm = ||g||``, after accumulation and all-reduce and without the loss scale;
    what is written on a logged step also folds the steps since the last one, so that no spike is missed. Watching
    changes nothing: weights are the same, bit for bit, as without. The total norm of the last step is in
    ``trainer.callback_metrics["grad_norm_total"]``, for ``EarlyStopping``, ``ModelCheckpoint`` and the progress bar.

    Args:
        rules: diagnosis rules; ``None`` for the shipped set, ``[]`` for none.
        log_every_n_steps: how often to write; ``None`` for the Trainer's own interval, so that gradients stand
            beside the user's metrics.
        sinks: further views, such as ``JsonlSink("run/gradients.jsonl")``.
        group_by: ``"layer"`` shows weight and bias of a module as one, ``"parameter"`` apart.
        norm_type: p of the norms in the per-layer charts, > 0 or infinite. Other than 2.0 it costs one more pass on
            logged steps; totals, clipping and the fold over steps stay l2.
        probe_every_n_steps: how often activations, measured updates and gradients over time are sampled for the
            rules; hooks live on those steps only. ``None``: never, and the rules that need them stay silent.
        silence: ids of rules to leave out, such as ``("clipping-always",)``; ``docs/diagnosis.md`` has them all.
        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.

    Raises:
        ValueError, TypeError: for bad arguments.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientNormMonitor()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        rules: Sequence[Rule] | None = None,
        log_every_n_steps: int | None = None,
        sinks: Sequence[Sink] | None = None,
        group_by: GroupBy = "layer",
        norm_type: float = 2.0,
        probe_every_n_steps: int | None = 50,
        silence: Sequence[str] = (),
        joint: bool = False,
    ) -> None:
        check_choice(group_by, get_args(GroupBy), "group_by")
        if isinstance(norm_type, bool) or not isinstance(norm_type, int | float):
            raise TypeError(f"norm_type must be a number, got {norm_type!r}")
        if not norm_type > 0:
            raise ValueError(f"norm_type must be positive or infinite, got {norm_type}")
        self.rules = check_all(rules, Rule, "rules")
        Diagnosis(default_rules() if self.rules is None else self.rules, silence)  # checks the ids
        self.silence = tuple(silence)
        self.probe_every_n_steps = check_interval(probe_every_n_steps, "probe_every_n_steps")
        self.log_every_n_steps = check_interval(log_every_n_steps, "log_every_n_steps")
        self.sinks = check_all(sinks, Sink, "sinks") or ()
        self.group_by = group_by
        self.joint = joint
        self.norm_type = float(norm_type)

    def _contribute(self, plan: Plan) -> None:
        plan.joint = plan.joint or self.joint
        plan.take("see")
        plan.rules = default_rules() if self.rules is None else self.rules
        plan.silence = self.silence
        plan.probe_every_n_steps = self.probe_every_n_steps if plan.rules else None
        plan.sinks = [*self.sinks]
        plan.log_every_n_steps = self.log_every_n_steps
        plan.group_by, plan.norm_type = self.group_by, self.norm_type

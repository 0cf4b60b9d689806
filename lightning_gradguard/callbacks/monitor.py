"""See: gradient norms of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lightning_gradguard.arguments import check_all, check_choice, check_interval, check_switch, warn_without_effect
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.diagnose import Rule, default_rules
from lightning_gradguard.measurement.layout import GroupBy
from lightning_gradguard.sinks import JsonlSink, Sink


class GradientNormMonitor(GradientCallback):
    """Shows the gradient norm of every layer, of every optimizer, in the Trainer's loggers.

    Every optimizer step is measured, ``norm = ||g||``, after accumulation and all-reduce and without the loss scale;
    what is written on a logged step also has the largest total norm since the last one
    (``grad_norm_total/largest``), and the *Gradient flow* tab the largest of each layer, so that a spike between two
    logged steps shows. Watching changes nothing: weights are the same, bit for bit, as without. The total norm of the
    last step is in
    ``trainer.callback_metrics["grad_norm_total"]``, for ``EarlyStopping`` and ``ModelCheckpoint``.

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
        probe_eagerly: whether a compiled model runs eagerly on sampled steps, so that what it holds is seen. Its
            weights then differ in their last bits from those of an unwatched run; without it they do not.
        prog_bar: whether the progress bar shows the total norm, as in ``self.log(..., prog_bar=True)``.
        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.
        verbose: whether each new finding, and a summary when the run ends, is said through Lightning's logging.
        keep_records: whether records are written to ``gradguard.jsonl`` in the run's log folder, at most 4 MB, for
            ``gradguard report``. Not without a logger, nor beside a ``JsonlSink`` among ``sinks``.

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
        probe_eagerly: bool = False,
        prog_bar: bool = False,
        joint: bool = False,
        verbose: bool = True,
        keep_records: bool = True,
    ) -> None:
        check_choice(group_by, get_args(GroupBy), "group_by")
        if isinstance(norm_type, bool) or not isinstance(norm_type, int | float):
            raise TypeError(f"norm_type must be a number, got {norm_type!r}")
        if not norm_type > 0:
            raise ValueError(f"norm_type must be positive or infinite, got {norm_type}")
        self.rules = check_all(rules, Rule, "rules")
        if rules is not None and not rules:
            warn_without_effect("GradientNormMonitor", "rules=[]", {"probe_every_n_steps": (probe_every_n_steps, 50)})
        self.probe_every_n_steps = check_interval(probe_every_n_steps, "probe_every_n_steps")
        self.probe_eagerly = check_switch(probe_eagerly, "probe_eagerly")
        self.prog_bar = check_switch(prog_bar, "prog_bar")
        self.log_every_n_steps = check_interval(log_every_n_steps, "log_every_n_steps")
        self.sinks = check_all(sinks, Sink, "sinks") or ()
        self.group_by = group_by
        self.joint = joint
        self.norm_type = float(norm_type)
        self.verbose = verbose
        self.keep_records = keep_records

    def _contribute(self, plan: Plan) -> None:
        plan.joint = plan.joint or self.joint
        plan.take("see")
        plan.rules = default_rules() if self.rules is None else self.rules
        plan.probe_every_n_steps = self.probe_every_n_steps if plan.rules else None
        plan.probe_eagerly = self.probe_eagerly
        plan.prog_bar = self.prog_bar
        plan.sinks = [*self.sinks]
        plan.log_every_n_steps = self.log_every_n_steps
        plan.group_by, plan.norm_type = self.group_by, self.norm_type
        plan.verbose = self.verbose
        plan.keep_records = self.keep_records and not any(isinstance(sink, JsonlSink) for sink in self.sinks)

"""See, tame and survive under transformers' Trainer: measured before it clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gradguard.arguments import check_choice, check_interval
from lightning_gradguard.clip.clipper import Policies, check_policies
from lightning_gradguard.diagnose import Rule, default_rules
from lightning_gradguard.guard.guard import Action
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.report.live import ConsoleSink
from lightning_gradguard.report.names import RECORDS_NAME
from lightning_gradguard.report.records_file import RecordsFile
from lightning_gradguard.report.run import Run
from lightning_gradguard.sinks import MemorySink, Sink

try:
    from transformers import TrainerCallback
except ImportError as error:  # the class below says so when it is made
    _missing: ImportError | None = error
    TrainerCallback = object
else:
    _missing = None


class GradGuardCallback(TrainerCallback):
    """Watches every layer, clips if told to, and keeps NaN away from the weights, under transformers' Trainer.

    The Trainer clips *before* it calls its callbacks, and a NaN norm makes all of its gradients NaN. So while it
    trains, this callback stands in front of ``trainer.accelerator.clip_grad_norm_``: what is measured are the gradients
    of the step, accumulated, reduced and unscaled, as they came. Where the Trainer does not ask for a norm
    (``max_grad_norm=0`` in transformers 4), it measures right before the optimizer step.

    Args:
        trainer: the Trainer that it is added to.
        clip: a policy, in place of ``max_grad_norm``; ``None`` leaves clipping to the Trainer.
        on_nonfinite: what becomes of a step whose gradients are not finite: ``"skip"``, ``"stop"``, ``"raise"``, or
            ``None`` to let everything through.
        rules: diagnosis rules; ``None`` for the shipped set, ``[]`` for none.
        log_every_n_steps: how often records are made; ``None`` for the Trainer's ``logging_steps``.
        sinks: further views of the records, such as ``TensorBoardSink("runs/gradients")``.
        verbose: whether findings, and a summary at the end, are printed.
        keep_records: whether records go to ``gradguard.jsonl`` in the Trainer's ``output_dir``, at most 4 MB.

    Raises:
        ImportError: if transformers is not installed.
        ValueError, TypeError: for bad arguments, and when training starts if both would clip, or under DeepSpeed.

    Example:
        >>> trainer = transformers.Trainer(model, args)  # doctest: +SKIP
        >>> trainer.add_callback(GradGuardCallback(trainer))  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Any,
        clip: Policies | None = None,
        on_nonfinite: Action | None = "skip",
        rules: Sequence[Rule] | None = None,
        log_every_n_steps: int | None = None,
        sinks: Sequence[Sink] = (),
        verbose: bool = True,
        keep_records: bool = True,
    ) -> None:
        if _missing is not None:
            raise ImportError("GradGuardCallback needs transformers: pip install 'lightning-gradguard[transformers]'")
        if clip is not None:
            check_policies(clip, "clip")
        if on_nonfinite is not None:
            check_choice(on_nonfinite, ("skip", "stop", "raise"), "on_nonfinite")
        self.trainer = trainer
        self.clip = clip
        self.on_nonfinite = on_nonfinite
        self.rules = rules
        self.log_every_n_steps = check_interval(log_every_n_steps, "log_every_n_steps")
        self.sinks = sinks
        self.verbose = verbose
        self.keep_records = keep_records
        self.pipeline: GradientPipeline | None = None
        self._memory = MemorySink(max_records=1000)
        self._measured = False

    @property
    def records(self) -> list[StepRecord]:
        """The latest records, oldest first; the last 1,000 are kept."""
        return list(self._memory.records)

    @property
    def findings(self) -> list[Finding]:
        """What the diagnosis found."""
        return self.pipeline.diagnosis.findings if self.pipeline and self.pipeline.diagnosis else []

    @property
    def run(self) -> Run:
        """The records with what can be done with them: ``run.plot()``, ``run.to_frame()``."""
        return Run(self.records, name=type(self).__name__)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stands in front of the Trainer's clipping."""
        if self.trainer.is_deepspeed_enabled:
            raise ValueError("GradGuardCallback: under DeepSpeed the engine holds the gradients: remove the callback")
        if self.clip is not None and args.max_grad_norm:
            raise ValueError(
                f"TrainingArguments(max_grad_norm={args.max_grad_norm}) and GradGuardCallback(clip=...) would both "
                "clip: set max_grad_norm=0, or remove the policy"
            )
        self._memory.records.clear()
        self.pipeline = GradientPipeline(
            self.trainer.model,
            self.trainer.optimizer,
            clip=self.clip,
            on_nonfinite=self.on_nonfinite,
            rules=default_rules() if self.rules is None else self.rules,
            sinks=self._make_sinks(args, state),
            log_every_n_steps=self.log_every_n_steps or max(1, int(args.logging_steps)),
        )
        self.trainer.accelerator.clip_grad_norm_ = self._clip_grad_norm_

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures here where the Trainer asked for no norm; ends the training if the guard asks for it."""
        if not self._measured:
            self._step()
        self._measured = False
        if self.pipeline is not None and self.pipeline.should_stop:
            control.should_training_stop = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the step."""
        if self.pipeline is not None:
            self.pipeline.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the Trainer as it was, and sums the run up."""
        self.trainer.accelerator.__dict__.pop("clip_grad_norm_", None)
        if self.pipeline is not None:
            self.pipeline.flush()
            self.pipeline.views.close()

    def _make_sinks(self, args: Any, state: Any) -> list[Sink]:
        sinks: list[Sink] = [self._memory]
        if state.is_world_process_zero:
            sinks += self.sinks
            sinks += [RecordsFile(Path(args.output_dir) / RECORDS_NAME)] if self.keep_records else []
            sinks += [ConsoleSink()] if self.verbose else []
        return sinks

    def _clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor | None:
        """What the Trainer calls to clip: our step first, then its own clipping of what is left."""
        accelerator = self.trainer.accelerator
        accelerator.unscale_gradients()
        self._step()
        self._measured = True
        assert self.pipeline is not None
        if self.pipeline.moved and max_norm != float("inf"):
            type(accelerator).clip_grad_norm_(accelerator, parameters, max_norm, norm_type)
        return self.pipeline.total_norm

    def _step(self) -> None:
        assert self.pipeline is not None
        self.pipeline.before_step(step=self.trainer.state.global_step, scaler=self.trainer.accelerator.scaler)

"""What our callbacks share: several on one Trainer are one pipeline per optimizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradguard.arguments import show_arguments
from lightning_gradguard.callbacks.seen import Seen
from lightning_gradguard.callbacks.session import Plan, Session
from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.report.run import Run

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class GradientCallback(Callback):
    """Base of our callbacks. Whatever their order in the list, each optimizer step is measured once.

    The first of them in the Trainer's list drives the pipelines; the others only say what they want done.

    Attributes:
        steps_aside: whether it does nothing on a Trainer that lists another of our callbacks.
    """

    steps_aside = False
    _session: Session | None = None
    _driven: Session | None = None  # the session, for the callback that forwards the Trainer's hooks to it
    _seen: Seen | None = None  # shared with copies: of whichever was in a fit last
    _restored: Mapping[str, Any] | None = None

    @abstractmethod
    def _contribute(self, plan: Plan) -> None:
        """Writes into the plan what this callback wants done."""

    @property
    def records(self) -> list[StepRecord]:
        """Returns the latest records of this fit, of all optimizers, oldest first; the last 1,000 are kept.

        Of a callback that was in no fit itself they are those of the copy of it that was in one last: some libraries
        train with copies of the callbacks they are given.
        """
        return list(self._shown.records)

    @property
    def findings(self) -> list[Finding]:
        """Returns what the diagnosis found in this fit."""
        return self._shown.findings

    @property
    def _shown(self) -> Seen:
        return self._session.seen if self._session else self._seen or Seen()

    @property
    def run(self) -> Run:
        """The latest records with what can be done with them, as :func:`~lightning_gradguard.read_run` gives them."""
        return Run(self.records, name=type(self).__name__)

    def plot(self, optimizer: int = 0) -> Figure:
        """Draws this fit, see :meth:`lightning_gradguard.Run.plot`; needs matplotlib."""
        return self.run.plot(optimizer)

    def to_frame(self, by: Literal["layer", "step"] = "layer") -> pandas.DataFrame:
        """The records of this fit as a table, see :meth:`lightning_gradguard.Run.to_frame`; needs pandas."""
        return self.run.to_frame(by)

    def _repr_html_(self) -> str:
        return self.run._repr_html_()

    def __repr__(self) -> str:
        return show_arguments(self)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Joins our callbacks on this Trainer into one session."""
        if stage != "fit":
            return
        if self._session is not None and self._session.is_in_use_beside(trainer):
            raise MisconfigurationException(
                f"{type(self).__name__} is in use in another fit that is still running: give each Trainer one of its "
                "own, made anew or by copy.deepcopy before the first fit."
            )
        ours = [c for c in trainer.callbacks if isinstance(c, GradientCallback)]  # type: ignore[attr-defined]
        ours = [c for c in ours if not c.steps_aside] or ours[-1:]  # the last was made for this Trainer
        if ours[0] is not self:
            self._join(ours[0]._session if self in ours else None)
            return
        plan = Plan()
        for callback in ours:
            plan.contributor = type(callback).__name__
            callback._contribute(plan)
        self._join(Session(plan, trainer, driver=self))

    def _join(self, session: Session | None) -> None:
        self._session = session
        self._driven = session if session is not None and session.driver is self else None
        if session is not None and self._seen is not None:
            self._seen.show(session.seen.records, session.diagnoses)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Builds the pipelines, now that the optimizers exist, and gives them back what a checkpoint held."""
        if self._session is None:
            return
        self._session.run(self._session.start, trainer, pl_module)
        if self._restored is not None:
            self._session.load_state_dict(self._restored)
            self._restored = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the first good state, now that a checkpoint is loaded whole."""
        if (session := self._driven) is not None and session.survival is not None:
            session.survival.recovery.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Attaches probes, on sampled steps, and remembers the batch, where incidents are saved."""
        if (session := self._driven) is not None:
            session.run(session.before_batch, trainer, batch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Removes the probes, and takes note of the loss."""
        if (session := self._driven) is not None:
            session.run(session.before_backward, trainer, loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Runs the pipeline of the optimizer that is about to step."""
        if (session := self._driven) is not None:
            session.run(session.before_step, trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures what the step changed, on sampled steps."""
        if (session := self._driven) is not None:
            session.run(session.after_step, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the views."""
        if (session := self._driven) is not None:
            session.run(session.end)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sums the run up, below the progress bar."""
        if (session := self._driven) is not None:
            session.run(session.tell_the_end, trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Sums the run up, and ends the views, whatever happened."""
        if (session := self._driven) is not None:
            session.run(session.tell_the_end, trainer, exception)
            session.run(session.fail, trainer, exception)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves Trainer and module as they were."""
        if (session := self._driven) is not None and stage == "fit":
            session.run(session.leave)

    def __getstate__(self) -> dict[str, Any]:
        """All but the fit itself: a copy has the same arguments, and what was seen up to now."""
        if self._session is not None:
            seen = Seen(list(self._session.seen.records), list(self._session.diagnoses))
        else:
            seen = self._seen = self._seen or Seen()
        # Lightning hangs the module's own log and log_dict on every callback, and with them the whole module.
        kept = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return {**kept, "_session": None, "_driven": None, "_seen": seen}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at a checkpoint that is saved by hand after the fit; in it, all that is written is looked at."""
        if (session := self._driven) is not None and session.survival is not None and not trainer.training:
            session.survival.checkpoints.check(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next steps depend on, for each optimizer, by its index."""
        return self._session.state_dict() if self._session else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the pipelines are there; under some strategies they are already."""
        if self._session is not None and self._session.pipelines:
            self._session.load_state_dict(state_dict)
        else:
            self._restored = state_dict

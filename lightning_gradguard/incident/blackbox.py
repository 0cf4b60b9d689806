"""Keeps what a replay will need of the running step, and saves it when the step goes bad."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.harmless.part import Part
from lightning_gradguard.harmless.rng import RngWatch
from lightning_gradguard.incident import sharded
from lightning_gradguard.incident.attributes import AttributeWatch
from lightning_gradguard.incident.batch import named_tensors
from lightning_gradguard.incident.bundle import Incident, IncidentFolder, MicroBatch, Place, digest_gradients
from lightning_gradguard.incident.locate import Localisation, localise, place_from_gradients
from lightning_gradguard.incident.trace import is_finite
from lightning_gradguard.incident.unnamed import nan_given_to_what_raised
from lightning_gradguard.incident.watcher import NeedsOtherProcesses
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.together import Together

# A step of more batches than this is saved without its first ones; accumulation rarely goes so far.
_MAX_BATCHES = 64

RunStep = Callable[[nn.Module, Any, int], Tensor | None]


class BlackBox:
    """Remembers the batches of the running step with the state of the generators before each; saves them on demand.

    On a quiet step it costs some 20 µs: references to the batch and to the module's own tensors, and one copy of the
    generators' state.

    Args:
        folder: where incidents go.
        module: the model.
        run: ``run(module, batch, index)`` gives the loss, for finding where it began; ``None`` leaves that to the
            replay.
        not_run: why ``run`` is missing, for the report.
        config: precision, accumulation and the like, asked for at the incident.
        rank: of this process among ``world_size``; those that saw the fault in their own batch write a bundle each,
            or one together where parameters are sharded.
        world_size: how many processes train together.
        outer: what the strategy wrapped around the module (FSDP), by which whole weights are gathered.
        together: the processes that share the module; found out from ``outer`` if not given.

    Attributes:
        part: the guard under which its methods are to be called: what cannot be saved does not end the run.

    Example:
        >>> box = BlackBox(IncidentFolder("incidents"), nn.Linear(2, 1), run=lambda m, batch, index: m(batch).mean())
        >>> box.before_batch(torch.zeros(4, 2), 0)
    """

    def __init__(
        self,
        folder: IncidentFolder,
        module: nn.Module,
        run: RunStep | None = None,
        *,
        not_run: str | None = None,
        config: Callable[[], Mapping[str, Any]] = dict,
        rank: int = 0,
        world_size: int = 1,
        outer: nn.Module | None = None,
        together: Together | None = None,
    ) -> None:
        self.part = Part("the recorder of incidents", "bad steps are not saved any more")
        self.folder = folder
        self.module = module
        self.run = run
        self.not_run = not_run
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.outer = module if outer is None else outer
        self.together = Together(self.outer) if together is None else together
        self._batches: deque[MicroBatch] = deque(maxlen=_MAX_BATCHES)
        self._losses: deque[Tensor] = deque(maxlen=_MAX_BATCHES)
        self._versions: dict[int, int] = {}
        self._stepped = False
        self._rng = RngWatch()
        self._attributes = AttributeWatch(module)

    def before_batch(self, batch: Any, index: int = 0) -> None:
        """Remembers one batch; call it before its forward pass. The first one after a step starts a new step."""
        # Cleared late, at the next batch: an incident of the step itself still needs its batches.
        if self._stepped:
            self._batches.clear()
            self._losses.clear()
            self._versions.clear()
            self._stepped = False
        # Modules change attributes in every batch; a replay starts from those before the first.
        if not self._batches:
            self._attributes.before_batch()
        with suppress(Exception):  # a batch that cannot be looked at is the step's business, not ours
            for tensor in _tensors(batch):
                self._versions[id(tensor)] = tensor._version
        self._batches.append(MicroBatch(_containers(batch), index, self._rng.capture(), self.rank))

    def before_backward(self, loss: Tensor) -> None:
        """Remembers the loss of a batch: under sharding it tells which process saw the fault."""
        # Detached: a loss with its graph would keep every activation of the step.
        self._losses.append(loss.detach())

    def find_unnamed(self, error: BaseException, buffers: Mapping[str, Tensor]) -> str | None:
        """Runs the batch that has just raised again; tells what NaN the function was given that raised, if there was.

        Args:
            error: what was raised.
            buffers: as before the step, by name.
        """
        if self.run is None or not self._batches or self.together.several:
            return None
        run, micro = self.run, self._batches[-1]
        return nan_given_to_what_raised(
            self.module,
            lambda module, batch: run(module, batch, micro.index),
            micro.batch,
            error,
            rng=micro.rng,
            buffers=dict(buffers),
        )

    def after_step(self) -> None:
        """Tells that an optimizer stepped: the next batch belongs to another step."""
        self._stepped = True

    def save(
        self,
        *,
        step: int,
        cause: str,
        action: str,
        optimizer: torch.optim.Optimizer | None = None,
        optimizer_index: int = 0,
        layout: Layout | None = None,
        gradients: Sequence[Tensor | None] = (),
        bad_names: Sequence[str] = (),
        bad_buffers: Sequence[str] = (),
        history: Sequence[tuple[int, float, str]] = (),
        buffers: Mapping[str, Tensor] | None = None,
        scaler: GradScaler | None = None,
        error: BaseException | None = None,
    ) -> str | None:
        """Saves one bad step, unless the folder is full. Under several processes, each of them must call it.

        Args:
            step: as in the records.
            cause: ``"nan"``, ``"inf"``, ``"spike"``, ``"exception"`` or another word for what was seen.
            action: what is done about it.
            optimizer: the one that was about to step, if the step came so far.
            optimizer_index: which one that is.
            layout: its parameters.
            gradients: one for each of its parameters.
            bad_names: names of those that are not finite.
            bad_buffers: names of the buffers that the step made non-finite.
            history: step, gradient norm and verdict of the last steps.
            buffers: as before the step, by name; as they are now if not given.
            scaler: the live loss scaler, if there is one.
            error: the exception that the step raised, where that is the incident.

        Returns where it went, where it began, and the command to replay it; ``None`` if nothing was saved.
        """
        params = list(self.module.parameters() if layout is None else layout.params)
        if self.together.any(not self._batches or self.folder.is_full, params):
            return None
        scale = None if scaler is None else float(scaler.get_scale())
        before = dict(buffers) if buffers is not None else {n: b.detach() for n, b in self.module.named_buffers()}
        is_sharded = sharded.holds_parts(self.outer)
        found = None if is_sharded else self._localise(before, scale)
        if not (is_sharded or self._is_mine(found, params)):
            return None
        incident = Incident(
            step=step,
            optimizer=optimizer_index,
            cause=cause,
            action=action,
            gradients=self._digests(layout, gradients),
            place=_place(layout, gradients, bad_names),
            buffers=before,
            history=history,
            config=self._config(optimizer, scale),
            bad_buffers=tuple(bad_buffers),
            **self._remembered(found, is_sharded, error),
        )
        return self._write(incident, optimizer, scaler, is_sharded)

    def _digests(self, layout: Layout | None, gradients: Sequence[Tensor | None]) -> dict[str, dict[str, Any]]:
        """Returns what a bundle says of the gradients; of pieces nothing where the other processes are not with us."""
        if layout is None or not (layout.sharding.whole or self.together.several):
            return {}
        return digest_gradients(layout, gradients)

    def _remembered(self, found: Localisation | None, is_sharded: bool, error: BaseException | None) -> dict[str, Any]:
        """Returns what an incident holds of this box itself: the batches, and where a run of them found the fault."""
        return {
            "batches": tuple(self._batches),
            "localisation": found,
            "not_localised": self.not_run if found is None else None,
            "notes": self._notes(),
            "suffix": "" if (is_sharded and self.together.several) or self.world_size == 1 else f"-rank{self.rank}",
            "attributes": self._attributes.now(),
            "exception": _in_words(error),
        }

    def _write(
        self,
        incident: Incident,
        optimizer: torch.optim.Optimizer | None,
        scaler: GradScaler | None,
        is_sharded: bool,
    ) -> str | None:
        """Writes the bundle, under sharding all processes together; returns where it lies, in words."""
        state = scaler.state_dict() if scaler is not None else None
        if is_sharded and not self.together.several:
            lacks = ["state.pt: the weights are spread over processes, and the others could not be asked"]
            place = self.folder.save(incident, self.module, None, state, lacks=lacks)
        elif is_sharded:
            place = sharded.save(self.folder, incident, self.outer, state, saw_it=self._saw_it(), rank=self.rank)
        else:
            place = self.folder.save(incident, self.module, optimizer, state)
        return None if place is None else _announcement(place, incident.localisation)

    def _is_mine(self, found: Localisation | None, params: Sequence[Tensor]) -> bool:
        """Tells whether this process writes a bundle: it met the fault in its batch, or is the first and nobody did."""
        # Every process asks, whatever it saw: the vote waits for all of them.
        here = self._saw_it() if found is None else found.found or found.error is not None
        anywhere = self.together.any(here, params)
        return not self.together.several or here or (not anywhere and self.rank == 0)

    def _saw_it(self) -> bool:
        """Tells whether a batch or a loss of this process is not finite."""
        # Under sharding no process may run the step alone, so batches and losses have to tell.
        tensors = [tensor for micro in self._batches for _, tensor in named_tensors(micro.batch)]
        return not all(map(is_finite, [*tensors, *self._losses]))

    def _config(self, optimizer: torch.optim.Optimizer | None, scale: float | None) -> dict[str, Any]:
        groups = [] if optimizer is None else optimizer.param_groups
        return {
            **self.config(),
            "loss_scale": scale,
            "rank": self.rank,
            "world_size": self.world_size,
            "optimizer_class": None if optimizer is None else type(optimizer).__name__,
            "learning_rates": [float(group["lr"]) for group in groups if "lr" in group],
        }

    def _localise(self, buffers: Mapping[str, Tensor], loss_scale: float | None) -> Localisation | None:
        """Returns the first batch of the step that goes bad, run again under watch; ``None`` where that must not be."""
        if self.run is None:
            return None
        try:
            return self._first_that_goes_bad(self.run, buffers, loss_scale)
        except NeedsOtherProcesses as problem:
            self.not_run = str(problem)
            return None
        except Exception as problem:  # the run must not end because it could not be told why it went wrong
            why = " ".join(f"{type(problem).__name__}: {problem}".split())
            return Localisation(None, None, None, (), (), (), f"could not be located: {why[:300]}")

    def _first_that_goes_bad(
        self, run: RunStep, buffers: Mapping[str, Tensor], loss_scale: float | None
    ) -> Localisation | None:
        # Batch by batch with the generators it had: dropout is then that of the bad step.
        seen: list[Localisation] = []
        for micro in self._batches:
            found = localise(
                self.module,
                lambda module, batch, index=micro.index: run(module, batch, index),  # type: ignore[misc]
                micro.batch,
                loss_scale=loss_scale,
                rng=micro.rng,
                buffers=dict(buffers),
            )
            seen.append(found)
            if found.found or found.error is not None:
                return found
        return next((found for found in seen if found.near_limit), seen[-1])

    def _notes(self) -> tuple[str, ...]:
        # A tensor's version counts its writes: a batch that was changed in place cannot be replayed as it came.
        written = [
            path
            for micro in self._batches
            for path, tensor in named_tensors(micro.batch)
            if tensor._version != self._versions.get(id(tensor), tensor._version)
        ]
        if not written:
            return ()
        return (f"the step wrote to {', '.join(written[:5])} in place, so what is saved is not what it was given",)


def _place(layout: Layout | None, gradients: Sequence[Tensor | None], bad_names: Sequence[str]) -> str:
    """Returns what the list of bad layers says about the place."""
    if layout is None:
        return "no gradient yet: the step ended before its backward pass did"
    layer_of = dict(zip(layout.names, layout.layer_of, strict=True))
    with_gradient = dict.fromkeys(
        layout.layers[layer] for layer, grad in zip(layout.layer_of, gradients, strict=True) if grad is not None
    )
    return place_from_gradients(list(with_gradient), [layout.layers[layer_of[name]] for name in bad_names])


def _announcement(place: Place, found: Localisation | None) -> str:
    where = f"; {found}" if found is not None and found.found else ""
    if place.lacks:
        return f"Saved to {place.path}{where}. It cannot be replayed: {'; '.join(place.lacks)}."
    command = f"python -m lightning_gradguard replay {shlex.quote(str(place.path))} --module my.module:factory"
    return f"Saved to {place.path}{where}. Run `{command}`."


def _containers(batch: Any) -> Any:
    """New lists, tuples and dicts around the same tensors: a step may pop entries from its batch."""
    if type(batch) is dict:
        return {key: _containers(item) for key, item in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_containers(item) for item in batch)
    return batch


def _tensors(batch: Any) -> Iterable[Tensor]:
    """Returns the tensors of a batch; of one that is a list, tuple or dict of nothing else without a walk."""
    parts = batch.values() if type(batch) is dict else batch if type(batch) in (list, tuple) else (batch,)
    if all(type(part) is Tensor for part in parts):
        return parts
    return [tensor for _, tensor in named_tensors(batch)]


def _in_words(error: BaseException | None) -> dict[str, str] | None:
    """Returns class and message of an exception; long messages are cut."""
    return None if error is None else {"type": type(error).__name__, "message": str(error)[:2000]}

"""Keeps what a replay will need of the running step, and saves it when the step goes bad."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.harmless.part import Part
from lightning_gradguard.harmless.rng import RngWatch
from lightning_gradguard.incident.bundle import Incident, IncidentFolder, MicroBatch
from lightning_gradguard.incident.locate import Localisation, localise, place_from_gradients
from lightning_gradguard.incident.trace import named_tensors
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.sharding import any_process

# A step of more batches than this is saved without its first ones; accumulation rarely goes so far.
_MAX_BATCHES = 64

RunStep = Callable[[nn.Module, Any, int], Tensor]


class BlackBox:
    """Remembers the batches of the running step with the state of the generators before each; saves them on demand.

    On a quiet step it costs some 20 µs: one reference to the batch and one copy of the generators' state.

    Args:
        folder: where incidents go.
        module: the model.
        run: ``run(module, batch, index)`` gives the loss, for finding where it began; ``None`` leaves that to the
            replay.
        not_run: why ``run`` is missing, for the report.
        config: precision, accumulation and the like, asked for at the incident.
        rank: of this process among ``world_size``; those that saw the fault in their own batch write a bundle each.
        world_size: how many processes train together.

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
    ) -> None:
        self.part = Part("the recorder of incidents", "bad steps are not saved any more")
        self.folder = folder
        self.module = module
        self.run = run
        self.not_run = not_run
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self._batches: deque[MicroBatch] = deque(maxlen=_MAX_BATCHES)
        self._versions: dict[int, int] = {}
        self._stepped = False
        self._rng = RngWatch()

    def before_batch(self, batch: Any, index: int = 0) -> None:
        """Remembers one batch; call it before its forward pass. The first one after a step starts a new step."""
        if self._stepped:
            self._batches.clear()
            self._versions.clear()
            self._stepped = False
        for _, tensor in named_tensors(batch):
            self._versions[id(tensor)] = tensor._version
        self._batches.append(MicroBatch(_containers(batch), index, self._rng.capture()))

    def after_step(self) -> None:
        """Tells that an optimizer stepped: the next batch belongs to another step."""
        self._stepped = True

    def save(
        self,
        *,
        step: int,
        optimizer: torch.optim.Optimizer,
        optimizer_index: int,
        action: str,
        cause: str,
        layout: Layout,
        gradients: Sequence[Tensor | None],
        bad_names: Sequence[str],
        bad_buffers: Sequence[str],
        history: Sequence[tuple[int, float, str]],
        buffers: Mapping[str, Tensor],
        scaler: GradScaler | None,
    ) -> str | None:
        """Saves one bad step, unless the folder is full. Under several processes, each of them must call it.

        Returns:
            Where it went, where it began, and the command to replay it; ``None`` if nothing was saved.
        """
        params = layout.params
        if not self._batches or any_process(self.folder.is_full, params):
            return None
        loss_scale = float(scaler.get_scale()) if scaler is not None else None
        found: Localisation | None
        try:
            found = self._localise(buffers, loss_scale)
        except Exception as problem:  # the run must not end because it could not be told why it went wrong
            found = Localisation(
                None, None, None, (), (), (), f"could not be located: {type(problem).__name__}: {problem}"
            )
        here = found is not None and (found.found or found.error is not None)
        anywhere = any_process(here, params)
        if self.world_size > 1 and not (here or (not anywhere and self.rank == 0)):
            return None
        layer_of = dict(zip(layout.names, layout.layer_of, strict=True))
        with_gradient = dict.fromkeys(
            layout.layers[layer] for layer, grad in zip(layout.layer_of, gradients, strict=True) if grad is not None
        )
        incident = Incident(
            step=step,
            optimizer=optimizer_index,
            cause=cause,
            action=action,
            gradients=dict(zip(layout.names, gradients, strict=True)),
            place=place_from_gradients(list(with_gradient), [layout.layers[layer_of[name]] for name in bad_names]),
            batches=tuple(self._batches),
            buffers=buffers,
            history=history,
            config={
                **self.config(),
                "loss_scale": loss_scale,
                "rank": self.rank,
                "world_size": self.world_size,
                "optimizer_class": type(optimizer).__name__,
                "learning_rates": [float(group["lr"]) for group in optimizer.param_groups if "lr" in group],
            },
            localisation=found,
            not_localised=self.not_run if found is None else None,
            bad_buffers=tuple(bad_buffers),
            notes=self._notes(),
            suffix=f"-rank{self.rank}" if self.world_size > 1 else "",
        )
        path = self.folder.save(incident, self.module, optimizer, scaler.state_dict() if scaler is not None else None)
        if path is None:
            return None
        where = f"; {found}" if found is not None and found.found else ""
        command = f"python -m lightning_gradguard replay {shlex.quote(str(path))} --module my.module:factory"
        return f"Saved to {path}{where}. Run `{command}`."

    def _localise(self, buffers: Mapping[str, Tensor], loss_scale: float | None) -> Localisation | None:
        """The first batch of the step that goes bad, run again under watch."""
        run = self.run
        if run is None:
            return None
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
        written = [
            path
            for micro in self._batches
            for path, tensor in named_tensors(micro.batch)
            if tensor._version != self._versions.get(id(tensor), tensor._version)
        ]
        if not written:
            return ()
        return (f"the step wrote to {', '.join(written[:5])} in place, so what is saved is not what it was given",)


def _containers(batch: Any) -> Any:
    """New lists, tuples and dicts around the same tensors: a step may pop entries from its batch."""
    if type(batch) is dict:
        return {key: _containers(item) for key, item in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_containers(item) for item in batch)
    return batch

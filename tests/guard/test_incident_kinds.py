"""Batches of the real world in real fits: each is saved, located and replayed, and never blamed on our own copy."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import math
import pathlib
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from lightning_gradguard import NonFiniteGuard
from lightning_gradguard.incident.replay import ReplayReport, replay
from tests.guard.models import half_precision

pytestmark = pytest.mark.filterwarnings("ignore:step . was", "ignore:The PyTorch API of nested tensors")
BAD = 1


class Encoding(collections.UserDict):
    """A mapping with attributes, as a tokenizer's."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Tensor


class Graphs:
    """A plain object with tensors and a ``to``."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.me = self

    def to(self, device: Any) -> Graphs:
        return Graphs(self.x.to(device))


class Pair(NamedTuple):
    x: Tensor
    index: int


class Split(enum.Enum):
    TRAIN = "train"


class Subclass(torch.Tensor):
    """A tensor of a class of its own, as images and masks are."""


class Opaque:
    """What cannot be saved, and a step does not touch."""

    def __init__(self) -> None:
        self.stream = iter([1, 2])


def packed(x: Tensor) -> Any:
    return pack_sequence([x[:2], x[2:3]])


def with_a_path(x: Tensor) -> Any:
    return {"x": x, "path": pathlib.Path("a.png"), "when": datetime.datetime(2026, 11, 25, 9, 30), "split": Split.TRAIN}


def with_odd_keys(x: Tensor) -> Any:
    return {"x": x, "meta": {("a", 1): 2, Split.TRAIN: datetime.date(2026, 1, 1)}}


# How a batch is made of a tensor, and how a step gets the tensor out of it.
KINDS = {
    "mapping with attributes": (lambda x: Encoding(x=x), lambda b: b.x),
    "path, date and enum": (with_a_path, lambda b: b["x"] if b["path"].suffix == ".png" and b["when"].hour else None),
    "keys of any kind": (with_odd_keys, lambda b: b["x"] * b["meta"][("a", 1)]),
    "slotted dataclass": (lambda x: (Slotted(x),), lambda b: b[0].x),
    "object with a to": (lambda x: Graphs(x), lambda b: b.to("cpu").me.x),
    "named tuple": (lambda x: Pair(x, 3), lambda b: b.x),
    "ordered dict": (lambda x: collections.OrderedDict(x=x), lambda b: b["x"]),
    "default dict": (lambda x: collections.defaultdict(list, x=x), lambda b: b["x"]),
    "namespace": (lambda x: SimpleNamespace(x=x), lambda b: b.x),
    "array": (lambda x: {"x": x.numpy()}, lambda b: torch.from_numpy(b["x"])),
    "array that is copied": (lambda x: {"x": x.numpy()}, lambda b: torch.tensor(b["x"])),
    "list of numbers": (lambda x: {"x": x.flatten().tolist()}, lambda b: torch.tensor(b["x"]).view(4, 4)),
    "array of objects": (lambda x: np.array([x, "a"], dtype=object), lambda b: b[0]),
    "nested, strided": (
        lambda x: torch.nested.nested_tensor([x[:3], x[3:]]),
        lambda b: torch.cat(list(b.unbind())),
    ),
    "nested, jagged": (
        lambda x: torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged),
        lambda b: torch.cat(list((b + b).unbind())),
    ),
    "sparse": (lambda x: x.to_sparse(), lambda b: b.to_dense()),
    "compressed sparse": (lambda x: x.to_sparse_csr(), lambda b: b.to_dense()),
    "packed": (packed, lambda b: pad_packed_sequence(b)[0].flatten(0, 1)),
    "tensor subclass": (lambda x: x.as_subclass(Subclass), lambda b: b.as_subclass(Tensor)),
    "strings beside it": (lambda x: [x, ["a", "b", "c", "d"]], lambda b: b[0]),
    "what cannot be saved, untouched": (lambda x: {"x": x, "extra": Opaque(), "open": open}, lambda b: b["x"]),
}


class Reader(pl.LightningModule):
    def __init__(self, get: Any = None) -> None:
        super().__init__()
        self.get = get or (lambda b: b)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(self.get(batch)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def inputs(number: int = 3) -> list[Tensor]:
    found = [torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(number)]
    found[BAD][0, 0] = math.nan
    return found


def fit(make_trainer: Any, folder: Any, module: Any, batches: Any, **options: Any) -> Any:
    """The first bundle of a fit over these batches."""
    guard = NonFiniteGuard(incident_dir=folder)
    make_trainer(callbacks=[guard], **options).fit(
        module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    )
    return min(folder.iterdir())


@pytest.mark.parametrize(("wrap", "get"), KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The given NumPy array is not writable")
def test_a_batch_of_any_kind_is_replayed_and_blamed(make_trainer, tmp_path, wrap, get):
    bundle = fit(make_trainer, tmp_path, Reader(get), [wrap(x) for x in inputs()])
    report = (bundle / "report.md").read_text()
    assert "**batch `" in report, report
    assert "before the step" in report
    found = replay(bundle, Reader(get))
    assert (found.reproduced, found.exact, found.localisation.phase) == (True, True, "batch")
    # The first use is of the batch as it is, and not of a copy that a replay made.
    assert found.localisation.origin.call.operator not in ("aten._to_copy.default", "aten.clone.default")


def test_a_part_that_is_missed_is_named_with_the_step_that_needs_it(make_trainer, tmp_path):
    def touch(batch):
        next(batch["extra"].stream, None)
        return batch["x"]

    bundle = fit(make_trainer, tmp_path, Reader(touch), [{"x": x, "extra": Opaque()} for x in inputs()])
    with pytest.raises(ValueError, match=r"test_incident_kinds.py.*the step uses batch\['extra'\].stream"):
        replay(bundle, Reader(touch))


def replayed(make_trainer: Any, folder: Any, make: Any, batches: Any, **options: Any) -> ReplayReport:
    return replay(fit(make_trainer, folder, make(), batches, **options), make())


def test_sparse_gradients_under_manual_optimization(make_trainer, tmp_path):
    class Embedded(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4, sparse=True)
            self.automatic_optimization = False

        def configure_optimizers(self):
            return torch.optim.SparseAdam(self.words.parameters())

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward((self.words(batch[0]) / batch[1]).square().mean())
            optimizer.step()

    batches = [(torch.tensor([1, 2]), torch.tensor(float(v))) for v in (1, 0, 1)]
    found = replayed(make_trainer, tmp_path, Embedded, batches)
    assert (found.reproduced, found.exact) == (True, True)
    assert found.localisation.origin.call.operator == "aten.div.Tensor"


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # Lightning says so once in a process
def test_a_step_that_sat_a_batch_out(make_trainer, tmp_path):
    class Choosy(Reader):
        def training_step(self, batch, batch_idx):
            return None if batch[0, 0] > 1e6 else super().training_step(batch, batch_idx)

    batches = inputs()
    batches.insert(0, batches[0] + 1e9)
    batches = [batches[0], batches[2], batches[1], batches[3]]
    found = replayed(make_trainer, tmp_path, Choosy, batches, accumulate_grad_batches=2)
    assert (found.reproduced, found.exact, len(found.loss)) == (True, True, 1)


def test_a_loss_scale_that_shrank_to_nothing_is_named(make_trainer, tmp_path):
    batches = [torch.ones(4, 4)] * 3
    bundle = fit(make_trainer, tmp_path, Reader(), batches, plugins=half_precision(0.0))
    report = (bundle / "report.md").read_text()
    assert "finite until the **loss scale** (0) is divided out" in report
    assert "fresh GradScaler" in report
    found = replay(bundle, Reader())
    assert (found.reproduced, found.localisation.phase) == (True, "loss scale")


def test_layers_that_configure_model_builds(make_trainer, tmp_path):
    class Late(Reader):
        def __init__(self):
            super().__init__()
            self.net = None

        def configure_model(self):
            self.net = self.net or nn.Linear(4, 1)

    assert replayed(make_trainer, tmp_path, Late, inputs()).exact


def test_lazy_layers(make_trainer, tmp_path):
    class Lazy(Reader):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(1)

    model = Lazy()
    model.net(torch.zeros(1, 4))
    assert replay(fit(make_trainer, tmp_path, model, inputs()), Lazy()).exact


class Annealed(Reader):
    """Hooks set one attribute, and change another; the loss needs both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.0

    def on_train_start(self) -> None:
        self.classes = torch.tensor([0.5])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.weight += 0.25

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx) * self.classes.mean()
        return loss / (self.weight - 0.5) if batch_idx == BAD else loss


def test_attributes_that_hooks_set_and_changed(make_trainer, tmp_path):
    found = replayed(make_trainer, tmp_path, Annealed, [torch.ones(4, 4)] * 3)
    assert (found.reproduced, found.exact) == (True, True)


class Carried(Reader):
    """A hidden state that goes from step to step, as in truncated back-propagation."""

    hidden: Tensor

    def on_train_start(self) -> None:
        self.hidden = torch.zeros(4, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state = self.hidden + batch
        self.hidden = state.detach().log() if batch_idx == BAD else state.detach()
        return self.net(state.log() if batch_idx == BAD else state).square().mean()


def test_a_state_that_the_step_replaced_is_replayed_as_it_was_before(make_trainer, tmp_path):
    found = replayed(make_trainer, tmp_path, Carried, [-torch.ones(4, 4)] * 3)
    assert (found.reproduced, found.exact, found.localisation.phase) == (True, True, "forward")
    assert found.localisation.origin.call.operator == "aten.log.default"


def test_what_a_fix_has_changed_in_the_module_is_left_alone(make_trainer, tmp_path):
    class Normalized(Reader):
        def __init__(self, eps=0.0):
            super().__init__()
            self.eps = eps
            self.norm = nn.LayerNorm(4, eps=eps)

        def training_step(self, batch, batch_idx):
            return self.net(self.norm(batch)).square().mean()

    bundle = fit(make_trainer, tmp_path, Normalized(), [torch.randn(4, 4), torch.ones(4, 4)])
    assert replay(bundle, Normalized()).exact
    assert not replay(bundle, Normalized(eps=1e-5)).reproduced


def test_what_the_step_was_told_of_its_trainer(make_trainer, tmp_path):
    class Scheduled(Reader):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            steps = self.trainer.estimated_stepping_batches
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]

        def training_step(self, batch, batch_idx):
            self.log("lr", self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx) * self.trainer.max_epochs

    assert replayed(make_trainer, tmp_path, Scheduled, inputs()).exact

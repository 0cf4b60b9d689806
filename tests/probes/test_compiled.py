"""A compiled model that is watched stays compiled and keeps every bit; looking into it has to be asked for."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, GradientNormMonitor
from lightning_gradguard.probes.compiled import Eagerly, modules_in_compiled_code
from tests.models import batches, same, weights

compiled = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler calls what torch deprecates


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))


class Compiled(pl.LightningModule):
    def __init__(self, how, backend):
        super().__init__()
        torch._dynamo.reset()
        self.net = net()
        self.function = []
        if how == "module":
            self.net = torch.compile(self.net, backend=backend)
        elif how == "in place":
            self.net.compile(backend=backend)
        elif how == "function":
            self.function = [torch.compile(lambda x: self.net(x), backend=backend)]

    def training_step(self, batch, batch_idx):
        call = self.function[0] if self.function else self.net
        return call(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def train(make_trainer, how, backend, **options):
    model = Compiled(how, backend)
    make_trainer(**options).fit(model, batches(16))
    return model


WAYS = pytest.mark.parametrize("how", ["module", "in place", "function"])


@compiled
@pytest.mark.filterwarnings("ignore:4 modules run inside of compiled code")
@WAYS
def test_a_watched_model_keeps_every_bit(make_trainer, how):
    backend = "aot_eager_decomp_partition"  # other bits than eager, as of inductor, in a hundredth of its time
    plain = train(make_trainer, how, backend)
    watched = train(make_trainer, how, backend, callbacks=[GradGuard(probe_every_n_steps=4)])
    assert same(weights(plain), weights(watched))
    if how == "module":
        eager = train(make_trainer, how, backend, callbacks=[GradGuard(probe_every_n_steps=4, probe_eagerly=True)])
        assert not same(weights(plain), weights(eager)), "so that there is something to keep"


@compiled
@pytest.mark.filterwarnings("ignore:4 modules run inside of compiled code")
@WAYS
def test_a_watched_model_is_compiled_as_often_as_one_that_is_not(make_trainer, how):
    counts = []
    for callbacks in ([], [GradientNormMonitor(probe_every_n_steps=2)]):
        graphs = []

        def count(graph, inputs, graphs=graphs):
            graphs.append(tuple(str(node.target) for node in graph.graph.nodes if node.op.startswith("call")))
            return graph.forward

        train(make_trainer, how, count, callbacks=callbacks)
        counts.append(graphs)
    plain, watched = counts
    assert set(plain) == set(watched), "the same graphs"
    # Which modules a function calls is not known: hooks on them are seen when it is first compiled, and then gone.
    assert len(watched) - len(plain) <= (how == "function")


@compiled
def test_what_is_not_seen_is_said_once_and_seen_if_asked(make_trainer):
    monitor = GradientNormMonitor(probe_every_n_steps=4)
    with pytest.warns(UserWarning, match="4 modules run inside of compiled code, which stays compiled") as told:
        train(make_trainer, "module", "eager", callbacks=[monitor])
    assert sum("compiled code" in str(warning.message) for warning in told) == 1
    assert not any(record.activations for record in monitor.records)
    monitor = GradientNormMonitor(probe_every_n_steps=4, probe_eagerly=True)
    train(make_trainer, "module", "eager", callbacks=[monitor])
    assert [stats.module for stats in monitor.records[0].activations] == ["net.0", "net.1", "net.2", "net.3"]


def test_the_stance_of_the_user_comes_back():
    function = torch.compile(lambda x: x + 1, backend="eager")
    with torch.compiler.set_stance("fail_on_recompile"):
        eagerly = Eagerly()
        eagerly.start()
        eagerly.start()
        eagerly.stop()
        eagerly.stop()
        assert torch._dynamo.eval_frame._stance.stance == "fail_on_recompile"
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert function(torch.ones(1)) == 2


def test_a_lightning_module_that_was_compiled_as_a_whole_is_hidden():
    model = Compiled("not", "eager")
    assert modules_in_compiled_code(model) == set()
    model._compiler_ctx = {"compiler": "dynamo"}
    assert modules_in_compiled_code(model) == set(model.modules())

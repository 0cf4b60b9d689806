import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lightning_gradguard import GradientPipeline, MemorySink, NonFiniteGradientError, NormClip, ZClip
from lightning_gradguard.guard.guard import Guard
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.guard.verdict import Signals
from lightning_gradguard.measurement.needs import NOTHING
from lightning_gradguard.spikes import SpikeRule

FUSED = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1, fused=True),
}


class Run:
    """A small network, trained by a loop of its own on numbered batches, some of them spoiled."""

    def __init__(self, guard, make_optimizer=FUSED["adamw"], clip=None, log_every_n_steps=1000):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = make_optimizer(self.net.parameters())
        self.sink = MemorySink()
        self.pipeline = GradientPipeline(
            self.net,
            self.optimizer,
            clip=clip,
            on_nonfinite=guard,
            sinks=[self.sink],
            log_every_n_steps=log_every_n_steps,
        )

    def step(self, index, spoil=None):
        generator = torch.Generator().manual_seed(index)
        x, y = torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)
        self.optimizer.zero_grad()
        (self.net(x if spoil is None else spoil(x)) - y).square().mean().backward()
        record = self.pipeline.before_step()
        self.optimizer.step()
        self.pipeline.after_step()
        return record

    def state(self):
        moments = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return [t.clone() for t in (*self.net.parameters(), *self.net.buffers(), *moments)]


def fill(value):
    return lambda x: torch.full_like(x, value)


def only_buffers(x):
    return torch.where(torch.arange(len(x)).view(-1, 1) == 0, 3e25, x)


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("spoil", [fill(math.nan), fill(math.inf), only_buffers], ids=["nan", "inf", "buffers"])
@pytest.mark.parametrize("make_optimizer", FUSED.values(), ids=FUSED)
def test_a_bad_step_moves_nothing_and_is_reported_with_the_next(make_optimizer, spoil):
    run = Run(Guard(on_device=True), make_optimizer)
    for index in range(3):
        assert run.step(index) is None
    before = run.state()
    assert run.step(3, spoil) is None
    assert equal(run.state(), before)
    record = run.step(4)
    assert (record.step, record.verdict) == (3, "skipped")
    assert record.cause == ("buffer" if spoil is only_buffers else "nan")
    assert not equal(run.state(), before)
    assert [r.step for r in run.sink.records] == [3]
    assert not hasattr(run.optimizer, "found_inf")


def test_the_same_weights_come_out_as_when_the_host_is_asked():
    states = []
    for on_device in (True, False):
        run = Run(Guard(on_device=on_device), clip=NormClip(0.5), log_every_n_steps=4)
        for index in range(20):
            run.step(index, fill(math.nan) if index in (2, 3, 9, 15) else None)  # 3 and 15 are logged steps
        states.append(run.state())
        assert [r.step for r in run.sink.records if r.verdict == "skipped"] == [2, 3, 9, 15]
        assert run.pipeline.state_dict()["counters"]["skipped"] == 4
        assert run.pipeline.state_dict()["counters"]["nonfinite"] + run.pipeline.since_last.num_nonfinite == 4
    assert equal(*states)


def test_layers_are_named_though_their_gradients_are_gone():
    run = Run(Guard(on_device=True))
    run.step(0)
    run.net[3].register_full_backward_hook(lambda module, grads, _: (torch.full_like(grads[0], math.inf),))
    run.step(1)
    record = run.step(2)
    assert record.nonfinite_layers == ("0", "1")


def test_patience_ends_the_run_as_soon_as_the_host_knows():
    run = Run(Guard(patience=3, on_device=True))
    run.step(0)
    before = run.state()
    for index in range(1, 4):
        run.step(index, fill(math.nan))
    with pytest.raises(NonFiniteGradientError, match=r"'0.weight' \(NaN\).*step 3, optimizer 0. This was bad step 3"):
        run.step(4, fill(math.nan))
    assert equal(run.state(), before)


def test_a_checkpoint_knows_of_the_last_step():
    run = Run(Guard(on_device=True))
    run.step(0)
    run.step(1, fill(math.nan))
    assert run.pipeline.state_dict()["counters"]["skipped"] == 1


def test_several_processes_learn_of_all_steps_but_the_last_whenever_their_own_device_is_done():
    run = Run(Guard(on_device=True))
    run.step(0)
    dropper, measurement = run.pipeline.judge.on_device, run.pipeline.layout.measure(NOTHING)
    assert [waiting.step for waiting in dropper.learned()] == [0]
    for step in (1, 2, 3):
        dropper.drop_if_bad_(step, measurement, Signals(measurement.total, torch.ones(())))
    assert [waiting.step for waiting in dropper.learned(alike=True)] == [1, 2]
    assert [waiting.step for waiting in dropper.learned(alike=True)] == []
    assert [waiting.step for waiting in dropper.learned(alike=True, wait=True)] == [3]


def test_dropping_on_the_device_reads_nothing_on_the_host():
    with FakeTensorMode():  # no value exists here: whoever wants to read one gets an error
        net = nn.Sequential(*[nn.Linear(70, 70) for _ in range(5)])
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        started = Recovery(nn.Module(), [])
        started.start()  # of a model it reads the weights, once, before the first step
        guard = Guard(on_device=True)
        pipeline = GradientPipeline(net, optimizer, clip=ZClip(), on_nonfinite=guard, recovery=started)
        assert pipeline.before_step(log=False) is None
        assert optimizer.found_inf.shape == ()
        asking = GradientPipeline(net, optimizer, clip=ZClip(), on_nonfinite=Guard(), recovery=started)
        with pytest.raises(DataDependentOutputException):
            asking.before_step(log=False)


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"action": "raise"}, "on_device=True drops steps without asking the host, and action 'raise' needs it"),
        ({"spikes": SpikeRule()}, "on_device=True drops steps without asking the host, and spikes needs it"),
    ],
    ids=["action", "spikes"],
)
def test_what_needs_the_host_is_refused(guard, message):
    with pytest.raises(ValueError, match=message):
        Guard(**guard, on_device=True)


def test_an_optimizer_that_cannot_leave_steps_out_is_refused_if_asked_for_and_else_judged_on_the_host():
    def plain(params):
        return torch.optim.AdamW(params, lr=0.1)

    with pytest.raises(ValueError, match="AdamW does not read found_inf: make it with fused=True; pass on_device=None"):
        Run(Guard(on_device=True), plain)
    assert Run(Guard(), plain).pipeline.judge.on_device is None
    assert Run(Guard(), FUSED["adamw"], clip=ZClip()).pipeline.judge.on_device is None  # no CUDA, no sync to be spared

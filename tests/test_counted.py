"""What a step costs, in figures that are the same on every machine: no change makes them worse unseen."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks import kernels
from benchmarks.counted import Count, Counter, count, count_step, variants
from lightning_gradguard import AGC, AutoClip, GradientPipeline, NormClip, ValueClip, ZClip
from tests.clip.policies import ALL

# On 100 tensors: 60 of two small shapes are stacked or listed, 40 are large.
HIGH, LOW = ZClip(z=1e6), ZClip(max_norm=1e-9)
STEPS = {
    # The host read of watching is the CPU's alone, where it costs nothing: a bad step makes a record. See below.
    "watching": (lambda: count_step(None, guard=False), Count(52, 1, 1.0, 0.0, 0.02)),
    "guard": (lambda: count_step(None, guard=True), Count(52, 1, 1.0, 0.0, 0.02)),
    "everything, idle": (lambda: count_step(HIGH, guard=True), Count(74, 1, 1.0, 0.0, 0.02)),
    "everything, clipping": (lambda: count_step(LOW, guard=True), Count(77, 1, 2.0, 1.0, 0.02)),
    "everything, logged": (lambda: count_step(HIGH, guard=True, log=True), Count(208, 4, 1.0, 0.0, 0.04)),
    "AutoClip, clipping": (lambda: count_step(AutoClip(), guard=True), Count(76, 1, 2.0, 1.0, 0.02)),
    "ValueClip, idle": (lambda: count_step(ValueClip(1e6), guard=True), Count(126, 1, 2.0, 0.0, 0.03)),
    # The fourth read: what cutting elements leaves of each layer can only be told from what is left.
    "ValueClip, clipping": (lambda: count_step(ValueClip(1e-6), guard=True), Count(273, 1, 4.0, 1.0, 0.04)),
    "AGC, clipping": (lambda: count_step(AGC(1e-9), guard=True), Count(148, 1, 2.0, 1.0, 0.15)),
}


@pytest.mark.parametrize(("run", "limit"), STEPS.values(), ids=STEPS.keys())
def test_a_step_costs_no_more_than(run, limit):
    found = run()
    assert found.reads == pytest.approx(limit.reads, abs=0.02)
    assert found.writes == pytest.approx(limit.writes, abs=0.02)
    assert found.host_reads <= limit.host_reads
    assert found.calls <= limit.calls
    assert found.taken <= limit.taken


@pytest.mark.parametrize("groups", [False, True], ids=["one policy", "one for each parameter group"])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_a_quiet_step_copies_nothing_to_the_device(make, groups):
    found = count_step({"even": make(), "odd": make()} if groups else make(), guard=True)
    assert (found.host_copies, found.host_reads) == (0, 1)


@pytest.mark.parametrize("groups", [False, True], ids=["one policy", "one for each parameter group"])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_a_quiet_step_moves_nothing_from_the_host_to_another_device(make, groups):
    found = count_step({"even": make(), "odd": make()} if groups else make(), guard=False, device="meta")
    assert (found.host_copies, found.host_reads) == (0, 0)


def test_the_count_does_not_vary():
    assert count_step(HIGH, guard=True) == count_step(HIGH, guard=True)


def test_the_counter_sees_passes_host_reads_and_memory():
    net = nn.Linear(10, 10, bias=False)

    def wasteful():
        for parameter in net.parameters():
            parameter.grad.mul_(2.0)
            float(parameter.grad.clone().view(-1).sum())
            parameter.grad.sum(1).tolist()

    found = count(net, wasteful)
    assert (found.reads, found.writes, found.host_reads) == (3.0, 1.0, 2)
    assert found.taken == pytest.approx(1.11, abs=0.02)


COPIES = {
    "a tensor of numbers": lambda: torch.tensor([1, 2]),
    "a number like a tensor": lambda: torch.as_tensor(0.5),
    "another tensor's kind": lambda: torch.ones(2).new_tensor([1.0]),
    "an index": lambda: torch.ones(3)[[0, 2]],
    "an index among others": lambda: torch.ones(3, 3)[:, [0, 2]],
    "a place to write": lambda: torch.ones(3).__setitem__([0, 2], 0.5),
    "a tensor of the host that is moved": lambda: torch.ones(3).to("meta"),
    "a tensor of the host that is written elsewhere": lambda: torch.empty(3, device="meta").copy_(torch.ones(3)),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_the_counter_sees_copies_to_the_device(copy):
    net = nn.Linear(2, 2)
    assert count(net, copy).host_copies == 1
    assert count(net, lambda: torch.as_tensor(net.weight).clamp(max=0.5).new_zeros(3)[0]).host_copies == 0


def test_every_variant_of_the_table_can_be_counted():
    assert all(run().calls > 0 for run in variants().values())


POLICIES = [
    None,
    NormClip(1.0),
    ValueClip(1.0),
    ZClip(max_norm=1.0),
    ZClip(by="value"),
    AutoClip(),
    AGC(),
]


def without_values(clip, on_nonfinite=None):
    """A pipeline where no value exists: whoever wants to read one gets an error."""
    net = nn.Sequential(*[nn.Linear(70, 70, device="meta") for _ in range(5)])
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return GradientPipeline(net, optimizer, clip=clip, on_nonfinite=on_nonfinite)


@pytest.mark.parametrize("clip", POLICIES, ids=lambda clip: type(clip).__name__)
def test_watching_and_clipping_read_nothing_on_the_host(clip):
    with FakeTensorMode(allow_non_fake_inputs=True):
        pipeline = without_values(clip)
        for _ in range(3):
            assert pipeline.before_step(log=False) is None
        assert pipeline.total_norm.shape == ()


def test_a_guard_must_read_one_number_so_the_test_above_can_fail():
    with FakeTensorMode(allow_non_fake_inputs=True):
        pipeline = without_values(None, on_nonfinite="skip")
        with pytest.raises(DataDependentOutputException):
            pipeline.before_step(log=False)


KERNELS = {"watching": 5, "guard": 8, "guard and NormClip": 13, "guard and ZClip": 30, "guard and AutoClip": 31}


@pytest.mark.parametrize(("name", "most"), KERNELS.items(), ids=KERNELS)
def test_an_accelerator_launches_few_kernels_in_a_quiet_step_and_is_never_waited_for(name, most):
    assert sum(kernels.VARIANTS[name]().values()) <= most


def test_a_view_is_no_pass():
    net = nn.Linear(4, 4)
    net.weight.grad = torch.ones(4, 4)
    with Counter(list(net.parameters())) as counter:
        net.weight.grad.view(-1)[3:].t()
    assert counter.count.reads == 0.0

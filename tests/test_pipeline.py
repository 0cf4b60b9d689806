import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lightning_gradguard import (
    AutoClip,
    GradientPipeline,
    Instruments,
    JsonlSink,
    MemorySink,
    NormClip,
    Sink,
    ValueClip,
    ZClip,
)
from lightning_gradguard.guard.guard import NonFiniteGradientError
from tests.clip.policies import ALL
from tests.models import same, weights

OPTIMIZERS = {
    "SGD with momentum and weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def backward(net, factor=1.0):
    net.zero_grad()
    (net(torch.ones(3, 4)).square().mean() * factor).backward()


def state_of(optimizer):
    return [value.clone() for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
class TestASkippedStep:
    def prepared(self, make):
        net = network()
        optimizer = make(net.parameters())
        for _ in range(2):
            backward(net)
            optimizer.step()
        backward(net, math.nan)
        return net, optimizer, weights(net), state_of(optimizer)

    def test_moves_no_weight_no_momentum_and_no_step_counter(self, make):
        net, optimizer, before, state = self.prepared(make)
        record = GradientPipeline(net, optimizer, on_nonfinite="skip").before_step()
        optimizer.step()
        assert same(weights(net), before)
        assert same(state_of(optimizer), state)
        assert record.verdict == "skipped"

    def test_would_move_weights_and_state_if_gradients_were_zeroed_instead(self, make):
        net, optimizer, before, state = self.prepared(make)
        for parameter in net.parameters():
            parameter.grad.zero_()
        optimizer.step()
        assert not same(weights(net), before)
        assert not same(state_of(optimizer), state)


def run(net, steps=6, *, factors=None, **options):
    """Trains with a pipeline and returns it with the records it made."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    memory = MemorySink()
    pipeline = GradientPipeline(net, optimizer, sinks=[memory], **{"log_every_n_steps": 1, **options})
    for step in range(steps):
        backward(net, (factors or {}).get(step, 1.0))
        pipeline.before_step()
        optimizer.step()
    return pipeline, memory.records


def test_watching_changes_no_bit():
    watched, plain = network(), network()
    run(watched, on_nonfinite="skip")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        backward(plain)
        optimizer.step()
    assert same(weights(watched), weights(plain))


def test_records_come_at_the_interval_and_fold_the_steps_between():
    _, records = run(network(), steps=8, factors={1: 100.0}, log_every_n_steps=4, clip=NormClip(0.01))
    assert [(record.step, record.num_steps) for record in records] == [(3, 4), (7, 4)]
    assert records[0].max_total_norm > 10 * records[0].total_norm
    assert records[0].max_layer_norms[0] > 10 * records[0].layer_norms[0]
    assert records[0].min_coefficient < 0.1 * records[0].coefficient
    assert records[1].max_total_norm < 0.1 * records[0].max_total_norm


def test_a_bad_step_makes_a_record_at_once_and_is_counted():
    _, records = run(network(), steps=5, factors={2: math.nan}, on_nonfinite="skip", log_every_n_steps=5)
    bad, last = records
    assert (bad.step, bad.verdict, bad.cause, bad.nonfinite_layers) == (2, "skipped", "nan", ("0", "2"))
    assert (last.nonfinite_total, last.skipped_total, last.num_steps) == (1, 1, 2)


def test_the_layers_that_are_not_finite_are_named():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="skip")
    backward(net)
    net[2].bias.grad[0] = math.inf
    record = pipeline.before_step()
    assert (record.nonfinite_layers, record.cause) == (("2",), "inf")
    assert record.layer_norms[0] > 0
    assert record.layer_norms[1] == math.inf


def test_without_a_guard_a_bad_step_goes_through_and_is_seen():
    _, records = run(network(), steps=2, factors={1: math.nan})
    assert [record.verdict for record in records] == ["ok", "nonfinite"]
    assert records[1].nonfinite_total == 1


def test_raise_names_step_optimizer_and_layers_and_leaves_weights():
    net = network()
    before = weights(net)
    with pytest.raises(NonFiniteGradientError, match=r"'0.weight' \(32 NaN, 0 Inf\).* step 0, optimizer 0") as caught:
        run(net, factors={0: math.nan}, on_nonfinite="raise")
    assert "No weight was moved" in str(caught.value)
    assert same(weights(net), before)


def test_patience_ends_a_run_that_does_not_recover():
    with pytest.raises(NonFiniteGradientError, match="bad step 3 in a row"):
        run(network(), steps=9, factors=dict.fromkeys(range(2, 9), math.inf), on_nonfinite="skip", patience=3)


def test_patience_is_per_streak():
    _, records = run(
        network(), steps=9, factors=dict.fromkeys((1, 2, 4, 5, 7), math.nan), on_nonfinite="skip", patience=3
    )
    assert records[-1].skipped_total == 5


def test_stop_asks_to_end_and_drops_the_step():
    pipeline, records = run(network(), steps=3, factors={1: math.nan}, on_nonfinite="stop")
    assert pipeline.should_stop
    assert records[1].verdict == "skipped"


@pytest.mark.parametrize("on_nonfinite", [None, "skip"], ids=["unguarded", "guarded"])
@pytest.mark.parametrize(
    "policy", [NormClip(1.0), ZClip(max_norm=1.0), AutoClip(max_norm=1.0)], ids=lambda p: type(p).__name__
)
def test_a_finite_gradient_whose_norm_overflows_keeps_its_direction(policy, on_nonfinite):
    net = nn.Linear(1000, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    direction = torch.randn_like(net.weight)
    net.weight.grad = direction * 1e30
    record = GradientPipeline(net, optimizer, clip=policy, on_nonfinite=on_nonfinite, log_every_n_steps=1).before_step()
    applied = net.weight.grad
    assert applied.isfinite().all()
    assert 0 < float(applied.double().norm()) <= 1.0 + 1e-5
    assert float(torch.cosine_similarity(applied.double(), direction.double())) == pytest.approx(1.0, abs=1e-6)
    assert record.total_norm == pytest.approx(float(direction.double().norm()) * 1e30, rel=1e-4)
    assert record.verdict == "clipped"


def test_a_tiny_gradient_is_not_zero_in_the_record():
    net = nn.Linear(100, 1, bias=False)
    net.weight.grad = torch.full_like(net.weight, 1e-25)
    record = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), log_every_n_steps=1).before_step()
    assert record.total_norm == pytest.approx(1e-24, rel=1e-4)
    assert record.layer_norms == (pytest.approx(1e-24, rel=1e-4),)


def test_no_gradient_is_none_and_zero_is_zero():
    net = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
    net[1].weight.grad = torch.zeros(2, 2)
    net[2].weight.grad = torch.ones(2, 2)
    record = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), log_every_n_steps=1).before_step()
    assert record.layer_norms == (None, 0.0, pytest.approx(2.0))


def test_a_step_without_any_gradient_is_no_step():
    net = network()
    pipeline = GradientPipeline(
        net, torch.optim.SGD(net.parameters(), lr=0.1), on_nonfinite="skip", log_every_n_steps=1
    )
    assert pipeline.before_step() is None
    assert pipeline.counters.steps == 0


@pytest.mark.parametrize("guard", [None, "skip"], ids=["unguarded", "guarded"])
def test_a_clipped_step_tells_norms_threshold_coefficient_and_cosine(guard):
    _, (record,) = run(network(), steps=1, factors={0: 100.0}, clip=NormClip(0.5), on_nonfinite=guard)
    assert record.verdict == "clipped"
    assert record.total_norm > 0.5
    assert record.post_clip_norm == pytest.approx(0.5, rel=1e-4)
    assert record.threshold == 0.5
    assert record.coefficient == pytest.approx(0.5 / record.total_norm, rel=1e-4)
    assert record.cosine == pytest.approx(1.0)
    assert record.clip_rate == 1.0


def test_clipping_by_value_turns_the_direction_and_the_record_says_how_far():
    net = nn.Linear(2, 1, bias=False)
    net.weight.grad = torch.tensor([[3.0, 0.4]])
    pipeline = GradientPipeline(
        net, torch.optim.SGD(net.parameters(), lr=0.1), clip=ValueClip(0.5), log_every_n_steps=1
    )
    record = pipeline.before_step()
    assert net.weight.grad.tolist() == [[0.5, pytest.approx(0.4)]]
    assert math.degrees(math.acos(record.cosine)) == pytest.approx(31.1, abs=0.1)
    assert record.post_clip_norm == pytest.approx(math.hypot(0.5, 0.4))


def test_a_gradient_within_the_threshold_is_not_touched_by_a_bit():
    net, plain = network(), network()
    run(net, clip=NormClip(1e6), on_nonfinite="skip")
    run(plain)
    assert same(weights(net), weights(plain))


def test_parameter_groups_are_clipped_apart():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "name": "encoder"}, {"params": net[1].parameters(), "name": "head"}], lr=0.1
    )
    pipeline = GradientPipeline(net, optimizer, clip={"encoder": NormClip(0.1), "head": None}, log_every_n_steps=1)
    backward(net, 100.0)
    raw = [p.grad.clone() for p in net.parameters()]
    record = pipeline.before_step()
    encoder = torch.cat([p.grad.flatten() for p in net[0].parameters()])
    assert float(encoder.norm()) == pytest.approx(0.1, rel=1e-4)
    assert torch.equal(net[1].weight.grad, raw[2])
    assert record.post_clip_norm == pytest.approx(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))
    assert record.cosine < 0.999


def test_a_group_that_does_not_exist_yet_is_waited_for_and_one_that_never_comes_is_named():
    net = network()
    optimizer = torch.optim.SGD([{"params": net[2].parameters(), "name": "head"}], lr=0.1)
    policies = {"body": NormClip(0.01), "tail": NormClip(1.0)}
    with pytest.warns(UserWarning, match="groups 'body', 'tail', which do not exist yet.*the groups are 'head'"):
        pipeline = GradientPipeline(net, optimizer, clip=policies)
    optimizer.add_param_group({"params": net[0].parameters(), "name": "body"})
    backward(net, 100.0)
    pipeline.before_step()
    assert float(torch.nn.utils.get_total_norm([p.grad for p in net[0].parameters()])) == pytest.approx(0.01, rel=1e-3)
    with pytest.warns(UserWarning, match="groups 'tail' were never used: no group of that name came"):
        pipeline.close()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": NormClip}, TypeError, r"clip must be a policy, got the class NormClip: write NormClip\(...\)"),
        ({"clip": 1.0}, TypeError, r"clip must be a ClipPolicy such as NormClip\(1.0\), got float: 1.0"),
        ({"on_nonfinite": "ignore"}, ValueError, "action must be one of"),
        ({"log_every_n_steps": 0}, ValueError, "log_every_n_steps must be at least 1, got 0"),
        ({"log_every_n_steps": 2.5}, TypeError, "log_every_n_steps must be an int, got float: 2.5"),
        ({"group_by": "block"}, ValueError, "group_by must be"),
    ],
    ids=["class", "number", "action", "interval", "fraction", "grouping"],
)
def test_bad_arguments_are_refused_at_construction(options, error, message):
    net = network()
    with pytest.raises(error, match=message):
        GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), **options)


def test_statistics_follow_their_parameters_when_a_layer_is_unfrozen():
    net = network()
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, clip=ZClip(), log_every_n_steps=1)
    for _ in range(3):
        backward(net)
        pipeline.before_step()
    before = dict(pipeline.clipper.parts[0].state)
    optimizer.add_param_group({"params": net[0].parameters()})
    pipeline.follow(optimizer)
    after = pipeline.clipper.parts[0].state
    assert pipeline.layout.layers == ("0", "2")
    assert after == before and before["mean"] > 0.0
    backward(net)
    assert pipeline.before_step().layers == ("0", "2")


def test_state_round_trips_through_weights_only_loading(tmp_path):
    pipeline, _ = run(network(), clip=ZClip(), on_nonfinite="skip", factors={3: math.nan})
    torch.save(pipeline.state_dict(), tmp_path / "state.pt")
    other = GradientPipeline(pipeline.module, pipeline.optimizer, clip=ZClip(), on_nonfinite="skip")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert repr(other.state_dict()) == repr(pipeline.state_dict())
    assert other.counters.skipped == 1


def test_state_of_another_policy_starts_fresh_and_says_so():
    pipeline, _ = run(network(), clip=AutoClip(window=10))
    other = GradientPipeline(pipeline.module, pipeline.optimizer, clip=AutoClip(window=20))
    with pytest.warns(UserWarning, match=r"clipping state of AutoClip: the checkpoint has .* it starts fresh"):
        other.load_state_dict(pipeline.state_dict())


class FullDisk(Sink):
    def write(self, record):
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_the_record_with_a_warning_and_never_the_run():
    net = network()
    memory = MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, sinks=[FullDisk(), memory], log_every_n_steps=1)
    backward(net)
    with pytest.warns(
        UserWarning, match="the view FullDisk failed and is taken away .*No space left.* it gets no more records"
    ):
        pipeline.before_step()
    pipeline.before_step()
    assert len(memory.records) == 2


def test_an_unwritable_folder_costs_the_record(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the view JsonlSink failed and is taken away"):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pipeline = GradientPipeline(
            net, optimizer, sinks=[JsonlSink(tmp_path / "file" / "x.jsonl")], log_every_n_steps=1
        )
        backward(net)
        pipeline.before_step()


def test_a_plain_loop_runs_where_lightning_is_not_installed(tmp_path):
    program = """
        import sys
        sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None  # importing them now raises ImportError
        import math, torch
        from lightning_gradguard import AutoClip, GradientPipeline, JsonlSink, ValueClip, ZClip, read_jsonl
        net = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        pipeline = GradientPipeline(net, optimizer, clip=ZClip(), on_nonfinite="skip", sinks=[JsonlSink("out.jsonl")],
                                    log_every_n_steps=2)
        for step in range(6):
            optimizer.zero_grad()
            (net(torch.ones(2, 3)).square().mean() * (math.nan if step == 2 else 1.0)).backward()
            pipeline.before_step()
            optimizer.step()
        print([(r.step, r.verdict) for r in read_jsonl("out.jsonl")])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "(2, 'skipped')" in result.stdout


class Cloud(nn.Module):
    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(10, 3))
        self.colours = nn.Parameter(torch.randn(10, 3))


def densify(cloud, optimizer, size):
    """Replaces each parameter by another of a size, in the module and in its group."""
    for group, name in zip(optimizer.param_groups, ("points", "colours"), strict=True):
        old = group["params"][0]
        new = nn.Parameter(torch.randn(size, 3))
        optimizer.state.pop(old, None)
        group["params"][0] = new
        setattr(cloud, name, new)


@pytest.mark.parametrize("size", [10, 15], ids=["same size", "other size"])
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_parameters_that_are_replaced_are_measured_clipped_and_guarded_at_that_very_step(size, action):
    cloud = Cloud()
    optimizer = torch.optim.Adam([{"params": [cloud.points]}, {"params": [cloud.colours]}], lr=0.01)
    pipeline = GradientPipeline(cloud, optimizer, clip=NormClip(0.1), on_nonfinite=action, log_every_n_steps=1)
    for step in range(6):
        if step == 3:
            densify(cloud, optimizer, size)
        optimizer.zero_grad()
        (cloud.points.square().sum() + cloud.colours.square().sum()).mul(math.nan if step == 4 else 1.0).backward()
        record = pipeline.before_step()
        got = [parameter.grad for parameter in cloud.parameters()]
        if step == 4:
            assert (record.verdict, got) == ("skipped", [None, None])
        else:
            assert float(torch.nn.utils.get_total_norm(got)) == pytest.approx(0.1, rel=1e-4)
        optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in cloud.parameters())


def test_parameters_that_are_regrouped_or_removed_are_followed():
    net = network()
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[2].parameters()}], lr=0.1)
    pipeline = GradientPipeline(net, optimizer, log_every_n_steps=1)
    backward(net)
    assert pipeline.before_step().layers == ("0", "2")
    first, second = optimizer.param_groups
    first["params"], second["params"] = [first["params"][0], second["params"][0]], [*second["params"][1:]]
    pipeline.before_step()
    assert pipeline.layout.group_of == (0, 0, 1)
    second["params"] = []
    assert pipeline.before_step() is not None
    assert pipeline.layout.names == ("0.weight", "2.weight")


def test_an_optimizer_of_another_model_is_refused():
    copied = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of its 4 parameters is one of the 4 of Sequential: it was made for"):
        GradientPipeline(network(), copied)


def test_several_optimizers_are_one_step_in_a_plain_loop():
    net = network()
    matrices, rest = [net[0].weight, net[2].weight], [net[0].bias, net[2].bias]
    optimizers = [torch.optim.Muon(matrices, lr=0.1), torch.optim.AdamW(rest, lr=0.1)]
    pipeline = GradientPipeline(net, optimizers, clip=NormClip(0.5), on_nonfinite="skip", log_every_n_steps=1)
    backward(net, 100.0)
    record = pipeline.before_step()
    whole = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in net.parameters()]))
    assert (record.post_clip_norm, whole) == (pytest.approx(0.5, rel=1e-4), pytest.approx(0.5, rel=1e-4))
    backward(net)
    net[2].bias.grad.fill_(math.nan)
    before = weights(net)
    pipeline.before_step()
    for optimizer in optimizers:
        optimizer.step()
    assert same(weights(net), before)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("where", ["two optimizers", "two groups of one", "one group"])
def test_a_parameter_that_stands_twice_counts_once_and_is_clipped_once(where):
    net = network()
    both, twice = list(net.parameters()), [net[0].weight, net[2].bias]
    if where == "one group":
        optimizers = [torch.optim.SGD([*both, *twice], lr=0.1)]
    else:
        optimizers = [torch.optim.SGD(both, lr=0.1), torch.optim.SGD(twice, lr=0.1)]
    if where == "two groups of one":
        optimizers[0].param_groups += optimizers.pop().param_groups
    pipeline = GradientPipeline(net, optimizers, clip=NormClip(0.5), on_nonfinite="skip", log_every_n_steps=1)
    for _ in range(2):
        net.zero_grad()
        backward(net, 100.0)
        raw = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in both]))
        record = pipeline.before_step()
        left = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in both]))
        assert record.total_norm == pytest.approx(raw, rel=1e-5)
        assert (record.post_clip_norm, left) == (pytest.approx(0.5, rel=1e-4), pytest.approx(0.5, rel=1e-4))


def test_an_optimizer_that_was_left_with_parameters_of_a_module_that_is_replaced_is_told_of_once():
    net = network()
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), log_every_n_steps=1)
    backward(net)
    pipeline.before_step()
    net[2] = nn.Linear(net[2].in_features, net[2].out_features)
    with pytest.warns(UserWarning, match=r"holds 2 parameters that are not the model's any more \(2\.weight") as said:
        for _ in range(2):
            backward(net)
            pipeline.before_step()
    assert len(said) == 1
    pipeline.follow(torch.optim.SGD(net.parameters(), lr=0.1))
    backward(net)
    assert pipeline.before_step().total_norm > 0


def test_an_overflow_in_one_of_several_optimizers_is_one_for_all():
    net = network()
    optimizers = [torch.optim.SGD([net[0].weight, net[2].weight], lr=0.1), torch.optim.SGD([net[0].bias], lr=0.1)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pipeline = GradientPipeline(net, optimizers, on_nonfinite="skip", log_every_n_steps=1)
    scaler.scale(net(torch.ones(3, 4)).square().mean()).backward()
    net[0].bias.grad[0] = math.inf
    before = weights(net)
    assert pipeline.before_step(scaler=scaler).verdict == "overflow"
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert same(weights(net), before)
    assert scaler.get_scale() == 512.0


def test_a_pipeline_is_a_context_that_closes_its_sinks_and_keeps_what_was_folded():
    class Closing(MemorySink):
        closed = 0

        def close(self):
            self.closed += 1

    net, sink = network(), Closing()
    with GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), sinks=[sink]) as pipeline:
        for factor in (1.0, 50.0, 1.0):
            backward(net, factor)
            pipeline.before_step()
    assert sink.closed == 1
    assert [(r.step, r.num_steps) for r in sink.records] == [(2, 3)]
    assert sink.records[0].max_total_norm == pytest.approx(50 * sink.records[0].total_norm)


def test_a_first_batch_that_ruins_the_buffers_is_undone():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), on_nonfinite="skip")
    net(torch.full((3, 4), math.nan)).sum().backward()
    assert pipeline.before_step().verdict == "skipped"
    assert bool(net[1].running_mean.isfinite().all())


def everything_of_a_run(net, clip, on_nonfinite):
    """Records and weights of a run with a bad step and one whose norm overflows."""
    sink = MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    instruments = Instruments(net, every_n_steps=1)
    options = {"log_every_n_steps": 1, "sinks": [sink], "instruments": instruments, "norm_type": 3.0}
    with GradientPipeline(net, optimizer, clip=clip, on_nonfinite=on_nonfinite, **options) as pipeline:
        for step, factor in enumerate([1.0, 1.0, math.nan, 1.0, 1e30]):
            optimizer.zero_grad()
            x = torch.full((3, 4), 0.5, device="cpu")
            instruments.before_forward(step, x, step, 0)
            loss = net(x).square().mean()
            instruments.after_forward(loss.detach(), loss)
            loss.backward()
            net[0].weight.grad.mul_(factor)
            pipeline.before_step(loss=loss.detach())
            optimizer.step()
            pipeline.after_step()
            pipeline.load_state_dict(pipeline.state_dict())
    return [(r.verdict, r.total_norm, r.post_clip_norm, r.layer_norms) for r in sink.records], [
        w.tolist() for w in weights(net)
    ]


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("on_nonfinite", [None, "rollback"])
@pytest.mark.parametrize("make", [lambda: None, *ALL.values()], ids=["no policy", *ALL])
def test_nothing_depends_on_the_default_device(make, on_nonfinite):
    expected, net = everything_of_a_run(network(), make(), on_nonfinite), network()
    with torch.device("meta"):
        found = everything_of_a_run(net, make(), on_nonfinite)
    assert repr(found) == repr(expected)

"""What a policy may rely on, whoever wrote it: when it is asked, how it may keep its state, what it gets to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Chain, Clip, ClipPolicy, GradientPipeline, NormClip, ValueClip
from lightning_gradguard.clip.answer import limited, norm_coefficient


class Mean(ClipPolicy):
    """Clips to a running mean that it rebinds."""

    def init_state(self, layout, device):
        return {"mean": torch.ones((), dtype=torch.float32, device=device)}

    def decide(self, measurement, state):
        finite = torch.where(measurement.total.isfinite(), measurement.total, state["mean"])
        state["mean"] = state["mean"].lerp(finite.to(state["mean"].dtype), 0.1)
        return Clip(threshold=state["mean"], coefficient=norm_coefficient(measurement.total, state["mean"]))


class MeanInPlace(ClipPolicy):
    """The same, written in place."""

    def init_state(self, layout, device):
        return {"mean": torch.ones((), dtype=torch.float32, device=device)}

    def decide(self, measurement, state):
        finite = torch.where(measurement.total.isfinite(), measurement.total, state["mean"])
        state["mean"].lerp_(finite.to(state["mean"].dtype), 0.1)
        return Clip(threshold=state["mean"], coefficient=norm_coefficient(measurement.total, state["mean"]))


class Listening(ClipPolicy):
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.norms: list[list[float]] = []

    def init_state(self, layout, device):
        return {}

    def decide(self, measurement, state):
        self.totals.append(float(measurement.total))
        self.norms.append(measurement.norms.tolist())
        return Clip()


PLACES: dict[str, Callable[[ClipPolicy], Any]] = {
    "alone": lambda policy: policy,
    "first in a chain": lambda policy: Chain([policy, NormClip(0.5)]),
    "later in a chain": lambda policy: Chain([ValueClip(0.5), policy]),
    "twice in a chain": lambda policy: Chain([policy, ValueClip(0.5), policy]),
    "in a chain of a chain": lambda policy: Chain([ValueClip(0.5), Chain([NormClip(9.0), policy])]),
    "for each parameter group": lambda policy: {"0": policy, "1": Chain([ValueClip(0.5), policy])},
}
LEVELS = (1.0, math.inf, 3.0, math.nan, 1e30, 0.0, 2.0)


def pipeline_of(clip: Any, on_nonfinite: Any = "skip") -> GradientPipeline:
    net = nn.Linear(4, 1)
    groups = [{"params": [parameter]} for parameter in net.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return GradientPipeline(net, optimizer, clip=clip, on_nonfinite=on_nonfinite, log_every_n_steps=1)


def run(pipeline: GradientPipeline, levels: tuple[float | None, ...]) -> list[Any]:
    """Steps with gradients whose elements all have this level; what the records say, and what the state is."""
    found = []
    for level in levels:
        for parameter in pipeline.layout.params:
            parameter.grad = None if level is None else torch.full_like(parameter, level)
        record = pipeline.before_step()
        if record is not None:
            state = [{key: float(value) for key, value in part.state.items()} for part in pipeline.clipper.parts]
            found.append((record.verdict, record.threshold, record.coefficient, record.post_clip_norm, state))
    return found


@pytest.mark.parametrize("on_nonfinite", ["skip", None])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_state_written_in_place_is_as_right_as_one_that_is_rebound(place, on_nonfinite):
    rebound, in_place = (run(pipeline_of(place(policy), on_nonfinite), LEVELS) for policy in (Mean(), MeanInPlace()))
    assert repr(in_place) == repr(rebound)  # NaN is NaN
    if on_nonfinite:
        assert [verdict for verdict, *_ in rebound[1:4:2]] == ["skipped", "skipped"]
        assert repr(rebound[1][-1]) == repr(rebound[0][-1])  # nothing was learned of the infinity


def test_a_state_written_in_place_is_saved_as_it_was_and_resumes():
    straight, first = pipeline_of(MeanInPlace()), pipeline_of(MeanInPlace())
    run(first, LEVELS)
    saved = first.state_dict()
    run(first, LEVELS)  # a checkpoint in memory does not move with the run
    resumed = pipeline_of(MeanInPlace())
    resumed.load_state_dict(saved)
    assert run(straight, LEVELS * 2)[len(LEVELS) :] == run(resumed, LEVELS)


def test_one_start_for_all_optimizers_is_written_in_place_by_none():
    class Shared(ClipPolicy):
        def __init__(self):
            self.start = torch.ones((), dtype=torch.float32)

        def init_state(self, layout, device):
            return {"mean": self.start}

        def decide(self, measurement, state):
            state["mean"].mul_(2.0)
            return Clip()

    policy = Shared()
    one, other = pipeline_of(policy), pipeline_of(policy)
    run(one, (1.0, 1.0))
    run(other, (1.0,))
    assert [float(pipeline.clipper.parts[0].state["mean"]) for pipeline in (one, other)] == [4.0, 2.0]
    assert float(policy.start) == 1.0


@pytest.mark.parametrize("place", [PLACES["alone"], PLACES["later in a chain"]], ids=["alone", "in a chain"])
@pytest.mark.parametrize("name", ["threshold", "coefficient", "bound"])
def test_an_answer_that_is_written_to_afterwards_is_refused_by_name(name, place):
    class Late(ClipPolicy):
        def init_state(self, layout, device):
            return {"mean": torch.full((2,), 0.5, dtype=torch.float32)}

        def decide(self, measurement, state):
            clip = Clip(**{name: state["mean"][0]})  # a view
            state["mean"].mul_(2.0)
            return clip

    with pytest.raises(RuntimeError, match=f"Late.decide wrote to the {name} of its answer after .* answer with a clo"):
        run(pipeline_of(place(Late())), (1.0,))


def test_a_policy_that_writes_to_its_answer_spoils_no_other():
    class Late(ClipPolicy):
        def init_state(self, layout, device):
            return {}

        def decide(self, measurement, state):
            clip = limited(measurement, "norm", 1.0, 2.0, 2.0)  # left alone: a coefficient of one
            clip.coefficient.mul_(0.5)
            return clip

    with pytest.raises(RuntimeError, match="wrote to the coefficient of its answer"):
        run(pipeline_of(Late()), (1.0,))
    assert run(pipeline_of(NormClip(9.0)), (1.0,))[0][2] == 1.0


def test_it_is_asked_once_a_step_and_again_where_the_norm_overflowed():
    policy = Listening()
    run(pipeline_of(policy), (1.0, None, math.nan, 1e30, 2.0))
    seen = policy.totals
    assert [round(total, 3) for total in seen[:1]] == [2.236]
    assert math.isnan(seen[1])
    assert seen[2:4] == [math.inf, pytest.approx(2.236e30, rel=1e-3)]
    assert seen[4:] == [pytest.approx(4.472, rel=1e-3)]


def test_what_is_not_finite_shows_in_the_total_and_in_the_norm_of_its_parameter():
    policy = Listening()
    pipeline = pipeline_of(policy)
    weight, bias = pipeline.layout.params
    for bad in (math.nan, math.inf):
        weight.grad, bias.grad = torch.ones(1, 4), torch.full((1,), bad)
        pipeline.before_step()
    assert [str(total) for total in policy.totals] == ["nan", "inf"]
    assert [[norm if math.isfinite(norm) else str(norm) for norm in norms] for norms in policy.norms] == [
        [2.0, "nan"],
        [2.0, "inf"],
    ]


def test_a_state_of_something_else_than_tensors_is_refused_by_key():
    class Numbers(ClipPolicy):
        def init_state(self, layout, device):
            return {"mean": 1.0}

        def decide(self, measurement, state):
            return Clip()

    with pytest.raises(
        TypeError, match=r"Numbers.init_state must give tensors, got 1.0 \(float\) for 'mean': write to"
    ):
        pipeline_of(Numbers())

"""The robust band that tells a spike from a noisy step."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from lightning_gradguard.spikes import SpikeRule, SpikeWatch


def noisy(count: int, seed: int, level: float = 1.0, sigma: float = 0.3) -> list[float]:
    generator = random.Random(seed)
    return [level * math.exp(generator.gauss(0, sigma)) for _ in range(count)]


def flags(rule: SpikeRule, values: list[float]) -> list[int]:
    watch = SpikeWatch(rule)
    return [index for index, value in enumerate(values) if watch.see(value) is not None]


def slow_twin(rule: SpikeRule, values: list[float]) -> list[int]:
    """The band as the docstring has it, step by step over a plain list."""
    good: list[float] = []
    run: list[float] = []
    flagged = []
    for index, value in enumerate(values):
        logs = [math.log(one) for one in good[-rule.window :]]
        is_spike = False
        if len(logs) >= rule.warmup:
            middle = statistics.median(logs)
            mad = statistics.median([abs(one - middle) for one in logs])
            is_spike = math.log(value) > middle + max(rule.z * 1.4826 * mad, math.log(rule.min_ratio))
        if not is_spike:
            good.append(value)
            run = []
        elif len(run) + 1 == rule.accept_after:
            good, run = [*run, value], []
        else:
            run.append(value)
            flagged.append(index)
    return flagged


@pytest.mark.parametrize("seed", range(20))
def test_the_watch_equals_its_slow_twin(seed):
    values = noisy(600, seed)
    generator = random.Random(seed + 100)
    for _ in range(12):
        values[generator.randrange(600)] *= 10 ** generator.uniform(0.5, 6)
    rule = SpikeRule(warmup=16, window=64)
    assert flags(rule, values) == slow_twin(rule, values)


def test_a_spike_is_flagged_and_the_noise_around_it_is_not():
    values = noisy(500, seed=0)
    values[300] = 100.0
    assert flags(SpikeRule(), values) == [300]


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_thousand_log_normal_steps_raise_no_alarm(seed):
    assert flags(SpikeRule(), noisy(10_000, seed)) == []


def test_a_spike_does_not_hide_the_next():
    values = noisy(300, seed=1)
    for index in (200, 202, 205):
        values[index] = 1e4
    assert flags(SpikeRule(), values) == [200, 202, 205]


def test_constant_values_make_no_spike_of_the_first_small_change():
    assert flags(SpikeRule(), [1.0] * 100 + [1.5] * 10 + [4.9]) == []


@pytest.mark.parametrize("rise", [1.2, 2, 6, 10, 1000])
def test_a_lasting_rise_is_accepted(rise):
    rule = SpikeRule()
    found = flags(rule, noisy(300, seed=2) + noisy(300, seed=3, level=rise))
    assert all(300 <= index < 300 + rule.window for index in found)
    assert len(found) < 4 * rule.accept_after


def test_a_slow_rise_over_many_orders_is_followed():
    values = [1.02**i for i in range(1000)]
    assert flags(SpikeRule(), values) == []


def test_nothing_is_flagged_in_the_warmup():
    assert flags(SpikeRule(warmup=32), [1.0] * 31 + [1e9]) == []
    assert flags(SpikeRule(warmup=32), [1.0] * 32 + [1e9]) == [32]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_what_has_no_logarithm_is_not_looked_at_and_not_remembered(value):
    watch = SpikeWatch(SpikeRule())
    for one in noisy(100, seed=4):
        watch.see(one)
    before = watch.state_dict()
    assert watch.see(value) is None
    assert watch.state_dict() == before


def test_a_watch_goes_on_where_its_state_left_off():
    values = noisy(200, seed=5) + [50.0] * 5
    whole = SpikeWatch(SpikeRule())
    expected = [whole.see(value) for value in values]
    first, second = SpikeWatch(SpikeRule()), SpikeWatch(SpikeRule())
    found = [first.see(value) for value in values[:202]]
    second.load_state_dict(first.state_dict())
    assert found + [second.see(value) for value in values[202:]] == expected


def test_a_spike_says_how_large_it_is():
    watch = SpikeWatch(SpikeRule(warmup=4))
    for _ in range(4):
        watch.see(2.0)
    assert str(watch.see(20.0)) == "20 is 10 times the usual 2 (limit 10)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": 0}, "z must be positive"),
        ({"z": float("nan")}, "z must be positive"),
        ({"min_ratio": 1.0}, "min_ratio must be above 1"),
        ({"warmup": 1}, "warmup"),
        ({"window": 8}, "window"),
        ({"accept_after": 1}, "accept_after"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikeRule(**arguments)

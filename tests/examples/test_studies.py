"""Each study in quick mode: the direction of its result, by a margin that chance does not bridge."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from typing import NamedTuple

import activations
import bad_batches
import clipping_direction
import demo
import gan
import init_scale
import lstm_language_model
import pytest
import residual_depth
import torch
import vanishing_rnn
from harness.report import Study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture
def quick(tmp_path):
    """Runs a script in quick mode, its logs in a folder of the test."""

    def run(script, *options):
        return script.main(["--quick", "--logdir", str(tmp_path), *options])

    run.logs = tmp_path
    return run


class Shown(NamedTuple):
    """What one run of the demo made: its studies of the CNN and the GAN are those that their scripts run."""

    studies: dict[str, Study]
    printed: str
    logs: Path


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    torch.set_num_threads(1)
    logs = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        made = demo.main(["--quick", "--logdir", str(logs)])
    return Shown({study.name: study for study in made}, printed.getvalue(), logs)


def test_the_demo_shows_three_failures_and_three_cures_in_one_table(shown):
    assert list(shown.studies) == ["lstm_language_model", "cnn20", "gan_dense"]
    combined = shown.printed[shown.printed.index("Without and with") :]
    assert "NaN at step" in combined
    assert f"tensorboard --logdir {shown.logs}" in combined
    assert len({file.parent for file in shown.logs.rglob("events.out.tfevents*")}) == 6


def tags(folder: Path) -> dict[str, list[str]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()


def test_a_language_model_explodes_and_every_clipper_cures_it(quick):
    study = quick(lstm_language_model, "--mitigate", "all")
    bits = {variant: study.mean(variant, "val/bits_per_character") for variant in study.variants()}
    assert list(bits) == ["none", "norm", "value", "zclip", "autoclip"]
    assert max(bits["norm"], bits["value"], bits["autoclip"]) < bits["none"] - 0.3
    assert not any(run.diverged for variant in list(bits)[1:] for run in study.of(variant))
    assert 0 < study.of("norm")[0].clip_rate < 0.5 < study.of("autoclip")[0].clip_rate
    assert study.of("none")[0].clip_rate is None
    assert study.of("none")[0].largest_norm > 2 * study.of("norm")[0].largest_norm

    folder = quick.logs / "lstm_language_model"
    assert (folder / "gradients.png").stat().st_size > 10_000
    for variant in bits:  # one run each, side by side, with hyperparameters to compare
        found = tags(folder / variant / "seed-0")["scalars"]
        assert {"grad_norm/rnn", "grad_norm_total/pre_clip", "val/bits_per_character"} <= set(found)


def test_a_plain_cnn_does_not_learn_and_the_cured_one_does(shown):
    study = shown.studies["cnn20"]
    assert study.mean("plain", "test/accuracy") <= 0.15
    assert study.mean("plain", "train/loss_epoch") == pytest.approx(math.log(10), abs=0.02)
    assert study.mean("cured", "test/accuracy") >= 0.85
    first, *_, last = study.of("plain")[0].depth.values()
    assert first / last < 1e-6
    first, *_, last = study.of("cured")[0].depth.values()
    assert first / last > 0.1
    assert len(study.of("plain")[0].depth) == 19  # the convolutions; the twentieth layer is the classifier


def test_a_gan_ends_in_nan_and_clipping_saves_it(shown):
    study = shown.studies["gan_dense"]
    (bad,), (good,) = study.of("no clipping"), study.of("norm")
    assert bad.stopped_at is not None
    assert bad.stopped_at < 20
    assert not bad.weights_finite
    assert not good.diverged
    assert good.metrics["quality/coverage"] >= 0.5
    assert good.metrics["quality/classes"] >= 8
    assert good.metrics["quality/frechet"] < study.reference["five digits"]


def test_the_guard_stops_a_gan_with_its_weights_finite(quick):
    (run,) = quick(gan, "--guard").of("guard")
    assert run.diverged
    assert run.weights_finite


def test_a_sigmoid_rnn_forgets_and_a_gru_remembers(quick):
    study = quick(vanishing_rnn, "--cell", "gru")
    (sigmoid,), (gru,) = study.of("sigmoid"), study.of("gru")
    assert sigmoid.metrics["test/mse"] >= 0.15
    assert gru.metrics["test/mse"] < 0.05
    assert sigmoid.metrics["before"] < 0.2
    assert 0.5 < gru.metrics["before"] < 0.8  # gates do not prevent vanishing at the start ...
    assert gru.metrics["after"] > 0.9  # ... training opens them
    assert 0 < sigmoid.depth["t=1"] / sigmoid.depth["t=30"] < 1e-20


def test_an_open_forget_gate_remembers_from_the_start():
    x, _ = next(iter(vanishing_rnn.AddingProblem(30, 1)))
    factor = {}
    for cell in ("lstm", "lstm, open gates"):
        torch.manual_seed(0)
        factor[cell] = vanishing_rnn.per_step(vanishing_rnn.reach_in_time(vanishing_rnn.Memory(cell=cell).rnn, x))
    assert factor["lstm"] < 0.75
    assert factor["lstm, open gates"] > 0.85


def test_the_adding_problem_marks_two_numbers_and_wants_their_sum():
    x, y = next(iter(vanishing_rnn.AddingProblem(30, 1)))
    assert x[:, :, 1].sum(dim=1).eq(2).all()
    assert y.shape == (64, 1)
    assert float(((x[:, :, 0] * x[:, :, 1]).sum(dim=1) - y[:, 0]).abs().max()) < 1e-6


def test_stacked_sigmoid_layers_lose_the_gradient_layer_by_layer(quick):
    study = quick(vanishing_rnn, "--stacked")
    assert study.mean("sigmoid", "ratio") < 1e-3
    assert study.mean("tanh", "ratio") > 0.01
    assert study.mean("gru", "ratio") > 0.01


def test_powers_of_a_matrix_vanish_stay_or_explode(quick):
    study = quick(vanishing_rnn, "--powers")
    assert study.mean("radius 0.9", "left") < 1e-3
    assert study.mean("orthogonal", "left") == pytest.approx(1)
    assert study.mean("radius 1.1", "left") > 100
    assert study.mean("radius 1.5", "left") > 1e14


def test_relu_learns_where_sigmoid_does_not(quick):
    study = quick(activations)
    assert study.mean("5 layers, sigmoid, torch", "test/accuracy") <= 0.15
    assert study.mean("5 layers, relu, he", "test/accuracy") >= 0.90
    assert study.mean("5 layers, relu, he", "epochs") <= 12
    assert math.isnan(study.mean("5 layers, sigmoid, torch", "epochs"))


def test_the_matched_initialization_learns(quick):
    study = quick(activations, "--matched")
    he, xavier = (study.mean(f"20 layers, relu, {init}", "test/accuracy") for init in ("he", "xavier"))
    assert he > xavier + 0.3


def test_residual_connections_learn_where_plain_depth_does_not(quick):
    study = quick(residual_depth)
    assert study.mean("20 plain", "test/accuracy") <= 0.15
    assert study.mean("20 residual", "test/accuracy") >= 0.85


def test_residual_connections_alone_explode_at_depth_50(quick):
    study = quick(residual_depth, "--depth", "50", "--max_epochs", "1")
    assert study.of("50 residual")[0].stopped_at is not None
    assert study.of("50 residual")[0].depth  # the profile of the only steps there were


def test_an_adaptive_threshold_clips_the_bad_batches_and_little_else(quick):
    study = quick(bad_batches)
    (bad,), (good,) = study.of("no clipping"), study.of("zclip")
    assert bad.diverged
    assert good.metrics["test/accuracy"] >= 0.90
    assert good.clip_rate < 0.10


def test_every_fiftieth_batch_is_bad_across_epochs():
    loader = bad_batches.WithBadBatches([(torch.ones(1), 0)] * 30, every=50, factor=255.0)
    sizes = [float(x) for _ in range(4) for x, _ in loader]
    assert [index + 1 for index, size in enumerate(sizes) if size == 255] == [50, 100]
    assert len(loader) == 30


def test_clipping_by_value_turns_the_gradient_and_clipping_by_norm_does_not(quick):
    study = quick(clipping_direction)
    assert study.mean("norm 0.25", "lowest") >= 1 - 1e-6
    assert study.mean("value, to the same norm", "cosine") < 0.95
    assert study.mean("value 0.01", "cosine") < 0.95
    assert study.mean("value, to the same norm", "lowest") < 0.8
    assert study.mean("value 0.001", "cosine") < study.mean("value 0.01", "cosine")


def test_the_picture_of_two_components_is_turned_by_31_degrees():
    gradient = [torch.tensor([3.0, 0.4])]
    angle = math.degrees(math.acos(clipping_direction.cosine(gradient, clipping_direction.by_value(gradient, 0.5))))
    assert angle == pytest.approx(31.1, abs=0.1)
    bound = clipping_direction.value_for_norm(gradient, 0.5)
    assert clipping_direction.by_value(gradient, bound)[0].norm() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("variant", "ratio"), [("scale 0.5", 1.8e-6), ("scale 1.0", 0.28), ("scale 1.5", 3.0)])
def test_the_scale_decides_what_reaches_the_first_layer(quick, variant, ratio):
    assert quick(init_scale).mean(variant, "ratio") == pytest.approx(ratio, rel=0.25)


def test_the_published_simulation_is_zero_at_the_first_layer_whatever_the_scale(quick):
    study = quick(init_scale, "--scalar")
    assert all(study.mean(f"as published, scale {scale}", "first") == 0 for scale in (0.5, 1.0, 1.5))
    corrected = [study.mean(f"corrected, scale {scale}", "first") for scale in (0.5, 1.0, 1.5)]
    assert 0 < corrected[0] < corrected[1] < corrected[2] < 1
    assert study.mean("corrected, scale 1.5", "exploded") < 0.01


def test_small_weights_vanish_faster_than_standard_normal_ones_under_sigmoid(quick):
    study = quick(init_scale, "--sigmoid")
    assert 0.03 < study.mean("N(0, 1)", "ratio") < 0.3
    assert study.mean("Xavier", "ratio") < 1e-4
    assert study.mean("Xavier, gain 4", "ratio") > 100 * study.mean("Xavier", "ratio")
    assert study.mean("N(0, 0.01²)", "ratio") < 1e-12
    assert study.mean("BatchNorm, Xavier", "ratio") > 0.1

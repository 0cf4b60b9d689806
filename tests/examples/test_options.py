"""What a user gets wrong is one clear line and exit status 2; options that are right do what they say."""

from __future__ import annotations

import ast
from pathlib import Path

import activations
import bad_batches
import cases
import clipping_direction
import cnn20
import demo
import gan
import init_scale
import lstm_language_model
import numpy as np
import pytest
import residual_depth
import vanishing_rnn
from harness import data, studies

from tests.forked import run_script

SCRIPTS = [
    activations, bad_batches, clipping_direction, cnn20, demo, gan, init_scale, lstm_language_model, residual_depth,
    vanishing_rnn,
]  # fmt: skip
TRAINING = [script for script in SCRIPTS if script not in (demo, init_scale)]


def name(script) -> str:
    return script.__name__


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_every_script_understands_the_common_options(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    common = ["--seed", "--seeds", "--compare", "--quick", "--logdir", "--record"]
    training = ["--max_epochs", "--fast_dev_run", "--accelerator", "--diagnose"]
    assert [option for option in common + training * (script in TRAINING) if option not in shown] == []
    assert f"python examples/{name(script)}.py" in shown


@pytest.mark.parametrize("script", TRAINING, ids=name)
def test_every_study_that_trains_shows_its_trainer_with_our_callbacks(script):
    calls = [node for node in ast.walk(ast.parse(Path(script.__file__).read_text())) if isinstance(node, ast.Call)]
    (trainer,) = [call for call in calls if ast.unparse(call.func) == "L.Trainer"]
    (callbacks,) = [keyword.value for keyword in trainer.keywords if keyword.arg == "callbacks"]
    assert "GradientNormMonitor(" in ast.unparse(callbacks)


@pytest.mark.parametrize("script", TRAINING, ids=name)
def test_a_fast_dev_run_goes_through_every_line_and_writes_nothing(script, tmp_path, capsys):
    study = script.main(["--fast_dev_run", "--logdir", str(tmp_path / "runs")])
    assert len(study.variants()) >= 2
    assert not (tmp_path / "runs").exists()
    assert study.question in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        (cnn20, ["--accelerator", "abacus"], "unknown --accelerator 'abacus': choose auto, gpu, cpu"),
        (cnn20, ["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (cnn20, ["--seed", "-1"], "seeds go from 0 to 4294967295, got --seed -1"),
        (init_scale, ["--seed", "4294967295", "--seeds", "2"], "seeds go from 0 to 4294967295"),
        (cnn20, ["--lr", "-1"], "--lr must be positive, got -1"),
        (gan, ["--lr", "0"], "--lr must be positive, got 0"),
        (residual_depth, ["--lr", "nan"], "--lr must be positive, got nan"),
        (activations, ["--momentum", "1"], "--momentum must be at least 0 and below 1, got 1"),
        (cnn20, ["--sweep", "--depth", "6"], "--sweep brings its own depths"),
        (cnn20, ["--max_epochs", "0"], "--max_epochs must be at least 1, got 0"),
        (cnn20, ["--fast_dev_run", "--record", "x"], "nothing to --record"),
        (cnn20, ["--data-dir", "/nonexistent"], "data folder /nonexistent does not exist"),
        (cnn20, ["--depth", "7"], "--depth must be even"),
        (cnn20, ["--compare", "--residual"], "leave out the other switches"),
        (cnn20, ["--compare", "--sweep"], "leave out the other switches"),
        (lstm_language_model, ["--text", "/nonexistent.txt"], "cannot read the text /nonexistent.txt"),
        (
            lstm_language_model,
            ["--mitigate", "none", "--max-norm", "1"],
            "--max-norm does nothing with --mitigate none",
        ),
        (lstm_language_model, ["--mitigate", "norm", "--z", "2"], "--z does nothing with --mitigate norm"),
        (lstm_language_model, ["--mitigate", "norm", "--max-norm", "-1"], "max_norm"),
        (lstm_language_model, ["--mitigate", "autoclip", "--percentile", "101"], "percentile"),
        (lstm_language_model, ["--batch", "100000"], "the text is too short"),
        (gan, ["--guard", "--max-norm", "1"], "--max-norm does nothing without --clip"),
        (gan, ["--compare", "--guard"], "leave out --clip, --max-norm and --guard"),
        (gan, ["--clip", "norm", "--max-norm", "-1"], "max_norm"),
        (activations, ["--matched", "--depth", "3"], "leave out the other switches"),
        (activations, ["--depth", "0"], "--depth must be at least 1"),
        (residual_depth, ["--compare", "--depth", "3"], "leave out --depth and --norm"),
        (residual_depth, ["--depth", "1"], "--depth must be at least 2"),
        (bad_batches, ["--compare", "--clip", "norm"], "leave out --clip and --max-norm"),
        (bad_batches, ["--clip", "value", "--max-norm", "1"], "--max-norm does nothing with --clip value"),
        (bad_batches, ["--every", "0"], "--every must be at least 1"),
        (bad_batches, ["--max-norm", "-1"], "max_norm"),
        (vanishing_rnn, ["--stacked", "--powers"], "different questions"),
        (vanishing_rnn, ["--length", "2"], "--length must be at least 3"),
        (init_scale, ["--scalar", "--sigmoid"], "different questions"),
        (clipping_direction, ["--norm", "0"], "--norm must be positive"),
        (demo, ["--compare"], "--compare is an option of each study"),
        (demo, ["--full", "--quick"], "contradict each other"),
        (cases, ["--only", "lstm"], "unknown study 'lstm'"),
        (cases, ["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (cases, ["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_contradictions_are_refused_with_the_reason(script, argv, says):
    with pytest.raises(data.UsageError) as error:
        script.main(argv)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--logdir", "--record"])
def test_a_folder_that_cannot_be_is_named_before_the_training(option, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.UsageError, match=rf"{option} .*file/deep: .*file is a file, not a folder"):
        init_scale.main([option, str(tmp_path / "file" / "deep")])


@pytest.mark.parametrize("broken", ["data_batch_1.bin", "data_batch_1", "train-images-idx3-ubyte"])
def test_an_empty_image_file_is_named(broken, tmp_path):
    (tmp_path / broken).touch()
    with pytest.raises(data.UsageError, match=broken):
        cnn20.main(["--data-dir", str(tmp_path)])


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b" \n\n ", "is empty"), (b"a \xff b", "not UTF-8")])
def test_a_text_that_is_none_is_named(content, says, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(data.UsageError, match=f"text.txt .*{says}"):
        clipping_direction.main(["--text", str(tmp_path / "text.txt")])


def test_a_script_ends_with_one_line_and_status_2(tmp_path):
    done = run_script(Path(cnn20.__file__), "--data-dir", "/nonexistent", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "cnn20.py: data folder /nonexistent does not exist\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--depht", "20"], "unrecognized arguments: --depht 20"), (["--norm", "layer"], "invalid choice: 'layer'")],
)
def test_a_mistyped_option_is_one_line_and_status_2_too(argv, says, capsys):
    with pytest.raises(SystemExit) as ended:
        cnn20.main(argv)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1


def test_an_accelerator_that_is_not_there_is_named():
    import torch

    if torch.cuda.is_available():  # then there is one, and nothing to complain of
        assert cnn20.main(["--accelerator", "cuda", "--fast_dev_run"]).runs
    else:
        with pytest.raises(data.UsageError, match="--accelerator cuda: "):
            cnn20.main(["--accelerator", "cuda", "--fast_dev_run"])
    with pytest.raises(data.UsageError, match="--accelerator tpu: "):  # whose library is not even installed
        cnn20.main(["--accelerator", "tpu", "--fast_dev_run"])


@pytest.mark.parametrize("script", [cnn20, gan, activations, residual_depth, bad_batches], ids=name)
def test_another_set_of_images_goes_through_every_line(script, tmp_path):
    rng = np.random.default_rng(0)
    for batch in ("data_batch_1.bin", "test_batch.bin"):
        records = rng.integers(0, 256, (80, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(80) % 10
        (tmp_path / batch).write_bytes(records.tobytes())
    study = script.main(["--fast_dev_run", "--data-dir", str(tmp_path)])
    assert study.source.startswith("CIFAR-10: 80 + 80 images of 32x32")
    assert study.runs


def test_another_text_goes_through_every_line(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"{n} {'abc ' * 500}" for n in range(20)))
    study = lstm_language_model.main(["--fast_dev_run", "--text", str(tmp_path / "text.txt")])
    assert study.source.startswith("text.txt: ")


def test_the_recorded_command_leaves_out_where_results_went():
    parser = studies.parser("", max_epochs=1, quick="")
    args = studies.parse(parser, ["--seeds", "5", "--record", "here", "--logdir", "there", "--compare"])
    assert args.command.endswith(".py --seeds 5 --compare") or args.command.endswith(" --seeds 5 --compare")


@pytest.mark.parametrize(("argv", "epochs"), [([], 20), (["--quick"], 6), (["--quick", "--max_epochs", "3"], 3)])
def test_quick_is_a_default_that_can_be_overruled(argv, epochs):
    parser = studies.parser("", max_epochs=20, quick="")
    assert studies.parse(parser, argv, quick_epochs=6).max_epochs == epochs

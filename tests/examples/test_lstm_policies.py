"""Every clipping policy on the language model: which sets there are, and what the page on clipping says of them."""

from __future__ import annotations

import re
from pathlib import Path

import lstm_language_model
import pytest
from harness import data
from harness.report import load

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"


@pytest.mark.parametrize(
    ("argv", "name", "variants"),
    [
        (["--mitigate", "all"], "lstm_language_model", ["norm", "value", "zclip", "autoclip"]),
        (["--mitigate", "others"], "lstm_policies", ["quantile", "agc", "adagc", "maxclip"]),
        (["--mitigate", "maxclip"], "lstm_language_model", ["maxclip"]),
        (["--compare"], "lstm_language_model", list(lstm_language_model.POLICIES)),
    ],
    ids=" ".join,
)
def test_a_set_of_policies_is_a_study_of_its_own(argv, name, variants, tmp_path):
    study = lstm_language_model.main([*argv, "--fast_dev_run", "--logdir", str(tmp_path)])
    assert study.name == name
    assert study.variants() == ["none", *variants]
    assert all((run.clip_rate is None) == (run.variant == "none") for run in study.runs)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--mitigate", "adagc", "--ratio", "0.5"], "ratio must be in"),
        (["--mitigate", "maxclip", "--decay", "1"], "decay must be in (0, 1)"),
        (["--mitigate", "maxclip", "--ratio", "0.1"], "--ratio does nothing with --mitigate maxclip"),
        (["--mitigate", "all", "--decay", "0.9"], "--decay does nothing with --mitigate all"),
        (["--mitigate", "norm", "--compare"], "--compare runs every policy: leave out --mitigate"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--bptt", "-1"], "--bptt must be at least 1, got -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_knob_that_is_wrong_or_turns_nothing_is_refused(argv, says):
    with pytest.raises(data.UsageError, match=re.escape(says)):
        lstm_language_model.main([*argv, "--fast_dev_run"])


def test_scaling_what_lies_beyond_the_running_maximum_cures_it(tmp_path):
    study = lstm_language_model.main(["--mitigate", "maxclip", "--quick", "--logdir", str(tmp_path)])
    bits = {variant: study.mean(variant, "val/bits_per_character") for variant in study.variants()}
    assert bits["maxclip"] < bits["none"] - 0.3
    assert not study.of("maxclip")[0].diverged


def test_the_page_on_clipping_says_what_was_measured():
    page = (ROOT / "docs" / "clipping.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(.*?\)` \| ([\d.]+) ± ([\d.]+) \| (\d)/(\d) \| (\d+) % \|$", page, flags=re.M)
    assert len(rows) == len(lstm_language_model.POLICIES)
    runs = [run for name in ("lstm_language_model", "lstm_policies") for run in load(RESULTS / f"{name}.json")[0].runs]
    of_policy = {"norm": "NormClip", "value": "ValueClip", "zclip": "ZClip", "autoclip": "AutoClip"} | {
        "quantile": "QuantileClip", "agc": "AGC", "adagc": "AdaGC", "maxclip": "MaxClip",
    }  # fmt: skip
    said = {row[0]: row[1:] for row in rows}
    for variant, policy in of_policy.items():
        mine = [run for run in runs if run.variant == variant]
        assert said[policy] == in_words(mine), policy


def in_words(runs):
    import statistics

    bits = [run.metrics["val/bits_per_character"] for run in runs]
    return (
        f"{statistics.fmean(bits):.2f}",
        f"{statistics.stdev(bits):.2f}",
        str(sum(run.diverged for run in runs)),
        str(len(runs)),
        f"{statistics.median(run.clip_rate for run in runs):.0%}".removesuffix("%"),
    )

from __future__ import annotations

import json
import math

import pytest
from harness.report import Run, Study, load, number, slope, thin


def study(**changes) -> Study:
    runs = [
        Run("without", 0, {"accuracy": 0.1}, diverged=True, seconds=2.0, depth={"a": 1e-4, "b": 1e-2, "c": 1.0}),
        Run("without", 1, {"accuracy": math.nan}, diverged=True, stopped_at=3, seconds=2.0, weights_finite=False),
        Run(
            "with", 0, {"accuracy": 0.9}, clip_rate=0.25, largest_norm=7.0, seconds=4.0, over_time=[(0, 1.0), (1, 2.0)]
        ),
        Run("with", 1, {"accuracy": 0.8}, clip_rate=0.35, largest_norm=9.0, seconds=6.0, over_time=[(0, 5.0)]),
    ]
    values = {"name": "toy", "question": "Does it?", "metrics": {"accuracy": "accuracy"}, "source": "", "command": "x"}
    return Study(**(values | {"runs": runs} | changes))


def test_the_table_has_a_row_for_each_variant_and_only_columns_that_say_something():
    headings, (without, cured) = study().rows()
    assert headings == [
        "variant", "accuracy", "diverged", "weights finite", "first layer", "last layer", "decades a layer",
        "largest norm", "clip rate", "seconds",
    ]  # fmt: skip
    assert without == ["without", "0.1 (1 of 2)", "2/2", "1/2", "1.0e-04", "1.0e+00", "+2.00", "–", "–", "2.0"]
    assert cured == ["with", "0.85 ± 0.071", "0/2", "2/2", "–", "–", "–", "8.0e+00", "30.0%", "5.0"]


def test_the_mean_over_seeds_does_not_hide_a_run_that_ended_early():
    assert math.isnan(study().mean("without", "accuracy"))
    assert study().mean("with", "accuracy") == pytest.approx(0.85)


def test_an_unknown_variant_is_named():
    with pytest.raises(KeyError, match="toy has no variant 'cured'"):
        study().of("cured")


def test_a_metric_that_was_never_reached_says_so():
    def cell(value, key="accuracy"):
        runs = [Run("x", 0, {key: value}, seconds=1.0)]
        return study(metrics={key: "m"}, runs=runs).rows()[1][0][1]

    assert cell(math.nan) == "NaN"
    assert cell(math.inf) == "inf"
    assert cell(math.nan, "epochs") == "never"


def test_the_markdown_table_is_the_same_table():
    headings, cells = study().rows()
    lines = study().markdown().splitlines()
    assert lines[0] == "| " + " | ".join(headings) + " |"
    assert lines[1].count("---") == len(headings)
    assert lines[2:] == ["| " + " | ".join(row) + " |" for row in cells]


def test_printing_a_table_to_a_pipe_folds_nothing(capsys):
    study(source="toy data").print()
    shown = capsys.readouterr().out
    assert "0.85 ± 0.071" in shown
    assert "2 seeds: metrics are mean ± standard deviation" in shown


def test_a_record_comes_back_as_it_was_and_says_when_and_where(tmp_path):
    original = study(reference={"a Gaussian": 2.0})
    path = original.record(tmp_path / "results")
    again, about = load(path)
    assert again.rows() == original.rows()
    assert again.reference == original.reference
    assert set(about) == {"date", "machine", "versions"}
    assert [len(run.over_time) for run in again.runs] == [0, 0, 2, 0]  # only what is plotted is kept
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in sorted(path.parent.iterdir())] == ["toy.json", "toy.png"]
    assert "NaN" in json.dumps(json.loads(path.read_text()))


def test_a_plot_of_nothing_and_of_zeros_is_still_a_plot(tmp_path):
    for runs in ([], [Run("a", 0, {}, depth={"x": 0.0, "y": 0.0})], [Run("a", 0, {}, over_time=[(0, math.nan)])]):
        assert study(runs=runs).plot(tmp_path / "plot.png").stat().st_size > 1000


def test_no_two_of_thirty_variants_look_alike(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (drawn.append(self), save(self, *args, **options))
    )
    runs = [Run(f"{index}", 0, {"test/accuracy": 1.0}, depth={"a": 1.0, "b": 2.0}) for index in range(30)]
    study(runs=runs).plot(tmp_path / "plot.png")
    lines = drawn[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 30


def test_slope_is_in_decades_per_layer_and_needs_two_layers():
    assert slope({"a": 1e-6, "b": 1e-4, "c": 1e-2}) == pytest.approx(2)
    assert slope({"a": 0.0, "b": 1e-4, "c": 1e-3}) == pytest.approx(1)  # nothing to take the logarithm of
    assert slope({"a": 1.0}) is None
    assert slope({}) is None


def test_thinning_a_series_keeps_its_spikes():
    series = [(step, 1000.0 if step == 777 else 1.0) for step in range(1000)]
    short = thin(series, most=100)
    assert len(short) == 100
    assert max(norm for _, norm in short) == 1000
    assert thin(series[:50], most=100) == series[:50]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.98436, "0.9844"), (10.0, "10"), (1.5e-17, "1.5e-17"), (math.nan, "nan"), (12345.0, "1.234e+04")],
)
def test_numbers_have_four_digits(value, shown):
    assert number(value) == shown

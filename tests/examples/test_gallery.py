from __future__ import annotations

import json
import math
import re

import bars
import cases
import data
import gallery
import init_scale
import pytest
from report import Run, Study, load


@pytest.fixture
def results(tmp_path):
    init_scale.main(["--sigmoid", "--quick", "--record", str(tmp_path / "results"), "--logdir", str(tmp_path)])
    return tmp_path / "results"


def test_the_gallery_shows_what_was_recorded_and_says_what_was_not(results, tmp_path):
    page = gallery.main(["--results", str(results), "--out", str(tmp_path / "README.md")]).read_text()
    study, about = load(results / "init_scale_sigmoid.json")
    assert study.markdown() in page
    assert about["date"] in page
    assert about["machine"] in page
    assert "\npython examples/" in page
    assert "](results/init_scale_sigmoid.png)" in page
    assert (tmp_path / "results" / "init_scale_sigmoid.png").is_file()
    assert "*cnn20: not recorded yet" in page
    assert str(tmp_path) not in re.sub(r"from `[^`]*`", "", page)  # nothing of this machine's folders


def test_every_case_has_its_place_in_the_gallery_and_every_place_its_case():
    shown = [name for page in gallery.PAGES for name in page.records]
    assert sorted(shown) == sorted(name for name, _, _ in cases.CASES)
    assert len(set(shown)) == len(shown)


def test_every_bar_speaks_of_a_case():
    assert {bar.study for bar in bars.BARS} <= {name for name, _, _ in cases.CASES}


def test_the_gallery_without_results_says_what_to_do(tmp_path):
    with pytest.raises(data.UsageError, match="run `make cases` first"):
        gallery.main(["--results", str(tmp_path)])


def of_values(*values: float, **options) -> Study:
    runs = [Run("a", seed, {"m": value}, **options) for seed, value in enumerate(values)]
    return Study("s", "?", {"m": "m"}, "", "", runs=runs, reference={"Gaussian fit": 5.0})


@pytest.mark.parametrize(
    ("bar", "passes", "fails"),
    [
        (bars.each("s", "a", "m", low=0.9), of_values(0.9, 1.0), of_values(0.8, 1.0)),
        (bars.each("s", "a", "m", high=0.9), of_values(0.9, 0.1), of_values(0.1, math.nan)),
        (bars.middle("s", "a", "m", low=0.9), of_values(0.8, 1.0), of_values(0.8, 0.9)),
        (bars.middle("s", "a", "m", low=3, how="median"), of_values(1, 3, 4), of_values(1, 2, 90)),
        (bars.not_finite("s", "a", 0.9), of_values(1.0, stopped_at=3), of_values(1.0)),
        (bars.never_diverges("s", "a"), of_values(1.0), of_values(1.0, diverged=True)),
        (bars.clips_less_than("s", "a", 0.05), of_values(1.0, clip_rate=0.01), of_values(1.0, clip_rate=0.05)),
    ],
    ids=lambda value: value.says if isinstance(value, bars.Bar) else "",
)
def test_a_bar_can_be_passed_and_missed(bar, passes, fails):
    assert bar.holds(passes)
    assert not bar.holds(fails)
    assert bar.measured(passes)
    assert bar.measured(fails)


def test_a_missed_bar_is_shown_as_missed(results, monkeypatch):
    monkeypatch.setattr(bars, "BARS", [bars.each("init_scale_sigmoid", "Xavier", "ratio", low=1.0)])
    study, _ = load(results / "init_scale_sigmoid.json")
    assert gallery.verdict(study).endswith("| **no** |")
    assert cases.verdict(results, ["init_scale_sigmoid"]) == 1


def test_cases_run_a_study_in_its_own_process_and_record_it(tmp_path, capsys):
    status = cases.main(["--only", "init_scale_scalar", "--seeds", "1", "--record", str(tmp_path)])
    assert status == 0
    recorded = json.loads((tmp_path / "init_scale_scalar.json").read_text())
    assert recorded["command"] == "python examples/init_scale.py --scalar --seeds 1"
    assert "holds" in capsys.readouterr().out

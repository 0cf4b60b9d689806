from __future__ import annotations

import json
import math
import re

import cases
import init_scale
import pytest
from harness import bars, data, gallery
from harness.report import Run, Study, load


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
    assert "*No pictures yet; `python examples/harness/screenshots.py --out examples/results` takes them.*" in page
    assert "He initialization alone" not in page  # of a study that is not recorded
    assert str(tmp_path) not in re.sub(r"from `[^`]*`", "", page)  # nothing of this machine's folders


def test_every_case_has_its_place_in_the_gallery_and_every_place_its_case():
    shown = [name for page in gallery.PAGES for name in page.records]
    assert sorted(shown) == sorted(name for name, _, _ in cases.CASES)
    assert len(set(shown)) == len(shown)


def test_every_bar_speaks_of_a_case():
    assert {bar.study for bar in bars.BARS} <= {name for name, _, _ in cases.CASES}


def test_the_pictures_of_tensorboard_stand_with_their_commands_date_and_machine(tmp_path):
    page = gallery.pictures(gallery.EXAMPLES / "results", gallery.EXAMPLES)
    record = json.loads((gallery.EXAMPLES / "results" / "screenshots.json").read_text())
    assert {shot["file"] for shot in record["shots"]} == set(gallery.PICTURES)
    for shot in record["shots"]:
        picture = gallery.EXAMPLES / "results" / shot["file"]
        assert f"](results/{shot['file']})" in page
        assert f"{shot['command']}\ntensorboard --logdir runs/{shot['study']}\n" in page
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 300_000
    assert f"{record['date']}, {record['machine']}" in page


def test_a_figure_in_a_text_is_a_cell_of_the_recorded_table():
    study = of_values(0.5, 0.7, diverged=True, seconds=1.0)
    made = {"s": study}
    assert gallery.filled("{s|a} of it, {s|a|diverged} fail", made) == "0.6 ± 0.14 of it, 2 of 2 fail"
    assert gallery.filled("{other|a} is not recorded", made) is None
    with pytest.raises(KeyError, match="has no variant 'b'"):
        gallery.filled("{s|b}", made)
    with pytest.raises(KeyError, match="has no column 'loss'"):
        gallery.filled("{s|a|loss}", made)


def test_every_figure_that_the_gallery_speaks_of_is_in_the_records():
    texts = [text for page in gallery.PAGES for text in (page.why, *page.not_held)]
    named = {name for text in texts for name, _, _ in gallery.CELL.findall(text)}
    paths = {name: gallery.EXAMPLES / "results" / f"{name}.json" for name in named}
    made = {name: load(path)[0] for name, path in paths.items() if path.is_file()}
    assert made
    assert not [text for text in texts if "{" in (gallery.filled(text, made) or "")]


def test_a_study_with_one_seed_and_one_with_an_extra_draw_are_counted_by_variant():
    extra = of_values(1.0, 2.0)
    extra.runs.append(Run("as published", 42, {"m": 1.0}))
    assert gallery.seeds_of(extra) == "2 seeds."
    assert gallery.seeds_of(of_values(1.0)) == "One seed."


def test_the_gallery_without_results_says_what_to_do(tmp_path):
    with pytest.raises(data.UsageError, match="run `make cases` first"):
        gallery.main(["--results", str(tmp_path)])


def test_a_page_in_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(data.UsageError, match="there is no folder"):
        gallery.main(["--out", str(tmp_path / "missing" / "README.md")])


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
    shown = gallery.verdict(study)
    assert "| Xavier: first / last weight gradient ≥ 1 with every seed |" in shown
    assert "| **no** |" in shown
    assert "*Missed; first / last weight gradient of `Xavier`, seed by seed: " in shown
    assert cases.verdict(results, ["init_scale_sigmoid"]) == 1


def test_cases_run_a_study_in_its_own_process_and_record_it(tmp_path, capsys):
    status = cases.main(["--only", "init_scale_scalar", "--seeds", "1", "--record", str(tmp_path)])
    assert status == 0
    recorded = json.loads((tmp_path / "init_scale_scalar.json").read_text())
    assert recorded["command"] == "python examples/init_scale.py --scalar --seeds 1"
    assert "holds" in capsys.readouterr().out

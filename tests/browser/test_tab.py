"""What a user sees and does in the tab."""

import json
import re
import time

import pytest
from selenium.webdriver.common.keys import Keys

from tests.tensorboard.synthetic import make_record, steady_run, transformer_layers, vanishing_run

BLACK = (0, 0, 0)
ZERO = (141, 147, 153)
COMPARED = (192, 86, 0)
LINE = (22, 104, 184)
BAD = (197, 22, 46)


def test_the_picture_is_painted_with_every_kind_of_cell(tab):
    tab.open(run="busy")
    colours = tab.colours()
    assert len(colours) > 150
    assert colours[BLACK] > 300, "the NaN step"
    assert colours[ZERO] > 300, "the layer that was zero"
    assert tab.data("rows") == "26"
    assert tab.data("columns") == "300"


def test_cards_say_what_matters_first(tab):
    tab.open(run="busy")
    assert tab.find("#card-nonfinite").text.split("\n")[-3:] == ["1", "non-finite", "last at step 1,860"]
    assert tab.find("#card-spikes .value").text == "5"
    assert "bad" in tab.find("#card-nonfinite").get_attribute("class")
    tab.find("#card-nonfinite").click()
    tab.wait(lambda: tab.data("pin") == "1860", "pin at the bad step")


def test_the_verdict_comes_first_with_the_gravest_finding_and_what_to_try(tab):
    tab.open(run="vanishing")
    verdict = tab.find("#verdict")
    assert verdict.text.startswith("✕Vanishing over depth: The gradient falls by 0.8 decades a layer")
    assert "First try: initialize for the activation (Xavier for tanh)" in verdict.text
    assert verdict.rect["y"] < tab.find("#picture").rect["y"]
    verdict.find_element("css selector", "button").click()
    tab.wait(lambda: tab.data("pin") == "40", "pin where it was found")
    tab.open(run="busy")
    assert "1 step not finite, the last at step 1,860" in tab.find("#verdict").text
    tab.open(run="residual")
    assert "Nothing to report. Up to step 1,190 every gradient was finite" in tab.find("#verdict").text


def test_all_runs_are_listed_the_newest_first_and_each_row_is_a_way_in(tab):
    tab.load(state="runs")
    names = [row.get_attribute("data-run") for row in tab.all("#overview tbody tr")]
    assert set(names) >= {"busy", "calm", "gan", "large", "residual", "single", "vanishing"}
    row = tab.find("#overview tr[data-run=vanishing]")
    assert "vanishing-over-depth" in row.text
    assert re.search(r"×\d(\.\d)?e1[12]", row.text), "the spread of sixteen layers that lose 0.8 decades each"
    tab.find("#search").send_keys("until step 200")
    tab.wait(lambda: len(tab.all("#overview tbody tr")) == 1, "the one run with that verdict")
    tab.find("#search").clear()
    tab.find("#search").send_keys("vanishing")
    tab.find("#overview tr[data-run=vanishing] button").click()
    tab.wait(lambda: tab.data("state") == "ready" and tab.chosen("run") == "vanishing", "the picture of that run")
    tab.find("#all-runs").click()
    tab.wait(lambda: tab.data("state") == "runs", "the list again")
    assert tab.linked("run") is None


def test_a_run_that_cannot_be_read_is_named_below_the_list(tab):
    tab.load(state="runs")
    told = tab.find("#unreadable").text
    assert told.startswith("1 run cannot be read:\nforeign: what was written with its tensors is not ours")


def test_events_are_listed_and_a_click_pins_their_step(tab):
    tab.open(run="busy")
    rows = tab.all("#events tbody tr")
    assert [row.get_attribute("data-kind") for row in rows].count("spike") == 5
    bad = tab.find("#events tr[data-kind=nonfinite]")
    assert "NaN gradient in 8 of 26 layers: step skipped" in bad.text
    bad.click()
    tab.wait(lambda: tab.data("pin") == "1860", "pin at the bad step")
    assert tab.linked("step") == "1860"
    assert "gradient ÷ weight NaN" in tab.find("#reading").text


def test_the_diagnosis_names_the_rule_and_its_remedies_in_order(tab):
    tab.open(run="vanishing")
    finding = tab.find("#diagnosis .finding.critical")
    assert finding.find_element("tag name", "h3").text.endswith("vanishing-over-depth")
    remedies = [item.text for item in finding.find_elements("css selector", "ol li")]
    assert remedies[0] == "initialize for the activation (Xavier for tanh)"
    assert len(remedies) == 3
    finding.find_element("css selector", ".chip").click()
    tab.wait(lambda: tab.linked("layer") == "blocks.0", "the layer in the link")


def test_the_pointer_shows_layer_step_and_values(tab):
    tab.open(run="busy")
    assert not tab.find("#tooltip").is_displayed()
    before = tab.colours("picture")
    tab.point(0.45, 0.6).perform()
    tab.wait(lambda: tab.find("#tooltip").is_displayed(), "tooltip")
    text = tab.find("#tooltip").text
    assert "encoder.layer." in text
    for name in ("step", "gradient ÷ weight", "gradient norm", "total norm", "shape 64×64"):
        assert name in text
    assert tab.colours("picture") != before, "profile and curve follow the pointer"
    tab.point(0.02, 0.02).perform()
    assert not tab.find("#tooltip").is_displayed()


def test_a_click_pins_and_a_second_one_lets_go(tab):
    tab.open(run="busy")
    tab.point(0.45, 0.6).click().perform()
    tab.wait(lambda: tab.data("pin"), "pin")
    assert tab.linked("layer").startswith("encoder.layer.")
    tab.point(0.45, 0.6).click().perform()
    tab.wait(lambda: tab.data("pin") == "", "release")
    assert tab.linked("step") is None


def test_a_second_run_is_drawn_beside_the_first(tab):
    tab.open(run="vanishing")
    assert COMPARED not in tab.colours("picture")
    tab.choose("compare", "residual")
    tab.wait(lambda: tab.colours("picture").get(COMPARED, 0) > 10, "curve of the compared run")
    tab.choose("anchor", "compare")
    tab.choose("compare", "")
    tab.wait(lambda: tab.chosen("anchor") == "recent", "another meaning of the middle")


def complaint(tab):
    """What both the field and the line below it say; they are read one after the other, while the page redraws."""
    told = tab.find("#filter").get_property("validationMessage")
    return told if told == tab.find("#filter-problem").text else "the field and the line below it differ"


def test_rows_can_be_filtered_and_a_bad_filter_says_so(tab):
    tab.open(run="busy")
    tab.find("#filter").send_keys("layer\\.[12]\\..*mlp")
    tab.wait(lambda: tab.data("rows") == "4", "four rows")
    assert tab.linked("filter") == "layer\\.[12]\\..*mlp"
    tab.find("#filter").send_keys("(")
    tab.wait(lambda: complaint(tab) == "not a regular expression; all are shown", "complaint")
    assert tab.data("rows") == "26"
    tab.find("#filter").clear()
    tab.find("#filter").send_keys("decoder")
    tab.wait(lambda: complaint(tab) == "no row matches; all are shown", "complaint")


@pytest.mark.parametrize(("rows", "count"), [("parameter", "26"), ("layer", "26"), ("block", "8")])
def test_rows_are_parameters_layers_or_blocks(tab, rows, count):
    tab.open(run="busy", rows=rows)
    assert tab.data("rows") == count


@pytest.mark.parametrize("stat", ["norm", "ratio", "update", "coefficient"])
def test_every_statistic_with_every_meaning_of_the_middle_is_drawn(tab, stat):
    tab.open(run="busy", compare="calm", stat=stat)
    anchors = [option.get_property("value") for option in tab.all("#anchor option")]
    seen = []
    for anchor in anchors:
        tab.choose("anchor", anchor)
        tab.wait(lambda anchor=anchor: tab.linked("anchor") == anchor, anchor)
        seen.append(json.dumps(sorted(tab.colours().items())))
    assert len(set(seen)) == len(anchors)


@pytest.mark.parametrize("anchor", ["recent", "run", "step", "layer"])
def test_a_run_that_broke_at_its_first_record_is_drawn_too(tab, anchor):
    tab.open(run="single", anchor=anchor)
    assert (tab.data("columns"), tab.data("rows")) == ("1", "26")
    assert tab.colours()[BLACK] > 1000
    tab.press(Keys.ARROW_RIGHT, "n", "+", "0")


def test_a_run_without_one_finite_step_is_black(tab):
    tab.open(run="nan")
    colours = tab.colours()
    assert max(colours, key=lambda c: colours[c] if c not in ((255, 255, 255), (255, 255, 255, 255)) else 0) == BLACK
    assert "20" in tab.find("#card-nonfinite .value").text


def test_each_optimizer_has_its_own_picture(tab):
    tab.open(run="gan")
    tab.choose("optimizer", "1")
    tab.point(0.4, 0.7).click().perform()
    tab.wait(lambda: (tab.linked("layer") or "").startswith("discriminator."), "a layer of the second optimizer")


def test_the_tab_is_dark_when_tensorboard_is(tab):
    tab.open(run="busy")
    assert tab.data("theme") == "light"
    tab.is_dark(True)
    tab.wait(lambda: tab.data("theme") == "dark", "dark theme")
    colours = tab.colours()
    assert max(colours, key=colours.get) == (27, 30, 36)
    assert colours[255, 255, 255] > 300, "NaN is white in the dark"
    tab.is_dark(False)
    tab.wait(lambda: tab.data("theme") == "light", "light theme")


def test_a_link_brings_back_the_whole_view(tab):
    wanted = {"run": "busy", "compare": "calm", "stat": "norm", "anchor": "layer", "rows": "block"}
    tab.load(
        "".join(f"&p.gradguard.{name}={value}" for name, value in (wanted | {"filter": "layer", "step": 1500}).items())
    )
    assert {name: tab.chosen(name) for name in wanted} == wanted
    assert tab.find("#filter").get_property("value") == "layer"
    assert tab.data("pin") == "1500"
    assert tab.data("rows") == "6"


def test_a_link_to_what_is_not_there_shows_what_is(tab):
    tab.load("&p.gradguard.run=busy&p.gradguard.stat=entropy&p.gradguard.anchor=moon&p.gradguard.steps=9~1")
    assert (tab.chosen("stat"), tab.chosen("anchor")) == ("ratio", "recent")
    tab.load("&p.gradguard.run=gone", state="runs")
    assert "There is no run “gone”" in tab.find("#overview .reason").text
    assert "busy" in tab.find("#overview tbody").text


def test_going_back_goes_back(tab):
    tab.open(run="busy")
    tab.driver.execute_script("window.parent.location.hash = 'gradguard&p.gradguard.run=calm'")
    tab.wait(lambda: tab.chosen("run") == "calm", "the run of the new address")


def test_dragging_zooms_in_and_a_double_click_shows_all_again(tab):
    tab.open(run="busy")
    picture = tab.find("#picture").size
    tab.point(0.3, 0.5).click_and_hold().move_by_offset(round(picture["width"] * 0.2), 60).release().perform()
    tab.wait(lambda: tab.linked("steps"), "zoom in the link")
    low, high = map(float, tab.linked("steps").split("~"))
    assert 0 < low < high < 2990
    assert tab.data("rows") == "26", "a drag is over time alone"
    tab.find("#reset").click()
    tab.wait(lambda: tab.linked("steps") is None, "no zoom")
    assert not tab.find("#reset").is_displayed()
    drag = tab.point(0.3, 0.6).key_down(Keys.SHIFT).click_and_hold()
    drag.move_by_offset(round(picture["width"] * 0.2), 60).release().key_up(Keys.SHIFT).perform()
    tab.wait(lambda: 1 < int(tab.data("rows")) < 26, "a part of the rows, with Shift")
    tab.point(0.45, 0.6).double_click().perform()
    tab.wait(lambda: tab.linked("steps") is None, "no zoom")
    assert tab.data("rows") == "26"


def test_everything_can_be_done_from_the_keyboard(tab):
    tab.open(run="busy")
    tab.press("n")
    tab.wait(lambda: tab.data("pin") == "600", "first event")
    tab.press(Keys.ARROW_RIGHT)
    tab.wait(lambda: tab.data("pin") == "610", "next column")
    tab.press(Keys.SHIFT, Keys.ARROW_LEFT)
    tab.wait(lambda: tab.data("pin") == "510", "ten columns back")
    before = tab.linked("layer")
    tab.press(Keys.ARROW_DOWN)
    tab.wait(lambda: tab.linked("layer") != before, "row below")
    tab.press("+")
    tab.wait(lambda: tab.linked("steps"), "zoom")
    tab.press("0")
    tab.wait(lambda: tab.linked("steps") is None, "no zoom")
    tab.press(Keys.END)
    tab.wait(lambda: tab.data("pin") == "2990", "last step")
    tab.press(Keys.ESCAPE)
    tab.wait(lambda: tab.data("pin") == "", "release")
    tab.press("?")
    assert tab.find("#key-help").is_displayed()
    tab.find("#key-help button").click()
    tab.press("/")
    assert tab.driver.switch_to.active_element.get_attribute("id") == "filter"


def wait_for_file(folder, pattern):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := [path for path in folder.glob(pattern) if path.stat().st_size]:
            return found[0]
        time.sleep(0.05)
    raise TimeoutError(f"no {pattern} in {list(folder.iterdir())}")


def test_what_is_shown_is_saved_as_a_picture_and_as_a_table(tab, downloads):
    tab.open(run="busy", stat="norm", filter="layer.1.")
    tab.find("#save-png").click()
    picture = wait_for_file(downloads, "gradient-flow-busy-norm*.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") > 2000, "twice the resolution of the screen"
    tab.find("#save-csv").click()
    lines = wait_for_file(downloads, "gradient-flow-busy-norm*.csv").read_text().splitlines()
    assert lines[0].startswith("layer,0,10,20,")
    table = {line.split(",")[0]: line.split(",")[1:] for line in lines[1:]}
    assert list(table) == [name for name in transformer_layers(6) if "layer.1." in name]
    assert table["encoder.layer.1.mlp.fc2.weight"][186] == "NaN"
    assert table["encoder.layer.1.attention.qkv.weight"][100] == "0"


STRONG = """
const done = arguments[arguments.length - 1];
const share = async (run) => {
  const { decodeFrame } = await import("./static/frame.js");
  const { makeCells } = await import("./static/cells.js");
  const { settle, emptyState } = await import("./static/state.js");
  const frame = decodeFrame(await (await fetch(`./flow?run=${run}&optimizer=0&stat=ratio`)).arrayBuffer());
  const { anchor } = settle({ ...emptyState(), stat: "ratio" }, frame);
  const { index } = makeCells(frame.values, frame.steps.length, { stat: "ratio", anchor, clipRatio: frame.clipRatio });
  return index.filter((place) => Math.abs(place - 127.5) > 42.5).length / index.length;
};
share(arguments[0]).then(done, (error) => done(String(error)));
"""


@pytest.mark.parametrize("name", ["plain", "normalized", "sigmoid", "unscaled"])
def test_a_healthy_run_looks_calm_and_one_that_is_sick_over_depth_does_not(tab, name):
    """The share of cells that are more than a third of the way to the end of the colours."""
    tab.open(run=f"trained_{name}")
    strong = tab.driver.execute_async_script(STRONG, f"trained_{name}")
    assert strong < 0.2 if name in ("plain", "normalized") else strong > 0.4


def test_rows_are_in_the_order_of_the_forward_pass_with_their_kinds(tab):
    tab.open(run="sampled")
    for y, layer, kind in [(0.72, "net.stem", "Conv2d"), (0.88, "net.head", "Linear")]:
        tab.point(0.5, y).perform()
        tab.wait(lambda layer=layer: tab.find("#tooltip b").text == layer, layer)
        assert kind in tab.find("#tooltip").text


def test_what_was_not_measured_is_held_and_says_how_old_it_is(tab):
    tab.open(run="sampled", stat="update", step="130", layer="net.norm")
    assert "measured 30 steps before" in tab.find("#reading").text
    tab.open(run="sampled", stat="update", step="150", layer="net.norm")
    assert "before" not in tab.find("#reading").text


def test_the_loss_has_a_curve_of_its_own_and_early_samples_a_mark(tab):
    tab.open(run="residual")
    without = tab.find("#picture").size["height"]
    tab.open(run="sampled", step="10", layer="net.stem")
    rows = 3 * 22
    assert tab.find("#picture").size["height"] > without - 16 * 22 + rows
    reading = tab.find("#reading").text
    assert "loss 1.94" in reading
    assert "sampled by the probes, between two logged steps" in reading


def test_a_point_between_two_that_are_not_finite_is_a_dot(tab):
    """As in tensorflow/tensorboard#866, where such points are not seen at all."""
    tab.open(run="gappy")
    colours = tab.colours()
    assert colours[LINE] > 20 * 4, "a dot for each of the twenty"
    assert colours[BAD] > 15 * 6, "a mark at the top for each of the others"


def test_a_finding_that_has_cleared_is_told_as_what_was(tab):
    tab.open(run="cleared")
    assert "Nothing to report. Vanishing over depth held until step 200." in tab.find("#verdict").text
    assert tab.find("#card-findings").text.split("\n")[-1] == "1 finding cleared"
    assert "vanishing-over-depth, until step 200" in tab.find("#diagnosis .finding.past h3").text
    assert tab.find("#events tr[data-kind=cleared]").text.startswith("200")
    tab.load(state="runs")
    assert "vanishing-over-depth, until step 200" in tab.find("#overview tr[data-run=cleared]").text
    assert tab.find("#overview tr[data-run=cleared] .verdict").get_attribute("class") == "verdict ok"


OVERLAPS = """
const nodes = [...document.querySelectorAll(arguments[0])];
const boxes = nodes.map((node) => node.getBoundingClientRect()).filter((box) => box.width);
const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const overlaps = boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)));
return overlaps.length + boxes.filter((box) => box.right > innerWidth).length;
"""

CUT_OFF = """
const texts = [...document.querySelectorAll(arguments[0])];
return texts.filter((text) => text.scrollWidth > text.clientWidth).map((text) => text.textContent);
"""


@pytest.mark.parametrize("width", [420, 700, 1000])
def test_nothing_overlaps_sticks_out_or_is_cut_off(tab, width):
    size = tab.driver.get_window_size()
    try:
        tab.driver.set_window_size(width, 900)
        tab.open(run="busy", compare="calm")
        tab.wait(lambda: tab.find("#picture").size["width"] <= width, "the picture at the new width")
        for group in (".controls > *", ".cards > *, .verdict, .figure, .reading, .panel"):
            assert tab.driver.execute_script(OVERLAPS, group) == 0, group
        assert tab.driver.execute_script(CUT_OFF, ".card .label, .card .detail") == []
        tab.find("#all-runs").click()
        tab.wait(lambda: tab.data("state") == "runs", "the list")
        assert tab.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        tab.driver.set_window_size(size["width"], size["height"])


def test_the_compared_run_is_a_second_picture_or_a_difference(tab):
    tab.open(run="busy")
    one = tab.find("#picture").size["height"]
    tab.choose("compare", "calm")
    two = tab.find("#picture").size["height"]
    assert two > one + 200, "a second picture below the first"
    tab.choose("anchor", "compare")
    assert tab.find("#picture").size["height"] < two - 200, "a difference is one picture"


def test_the_list_of_runs_is_one_question(tab):
    tab.load(state="runs")
    asked = tab.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name.split("/gradguard/")[1] for name in asked if "/static/" not in name] == ["runs?"]


def test_a_table_has_no_value_that_was_not_measured(tab, downloads):
    tab.open(run="sampled", stat="update")
    tab.find("#save-csv").click()
    lines = wait_for_file(downloads, "gradient-flow-sampled-update*.csv").read_text().splitlines()
    stem = next(line.split(",") for line in lines if line.startswith("net.stem"))
    assert [value == "not measured" for value in stem[1:7]] == [False, True, True, True, True, False]


def test_a_thousand_layers_are_drawn_at_once(tab):
    tab.load("&p.gradguard.run=large")
    assert tab.data("rows") == "1000"
    assert len(tab.colours()) > 150
    drawn = tab.driver.execute_script("return performance.getEntriesByName('gradguard-picture').length")
    assert drawn == 1, "one drawing shows them all"


def test_a_run_that_trains_grows_before_the_eyes(tab, logdir, board):
    from lightning_gradguard.tensorboard.sink import TensorBoardSink

    sink = TensorBoardSink(logdir / "training")
    records = list(steady_run(num_records=60))
    for record in records[:20]:
        sink.write(record)
    sink._board.current().flush()
    board.wait_until_read()
    tab.open(run="training", step="100")
    assert tab.data("columns") == "20"
    assert tab.find("#live").text == "live"
    for record in records[20:]:
        sink.write(record)
    sink.close()
    tab.wait(lambda: tab.data("columns") == "60", "the new columns")
    assert tab.data("pin") == "100", "the pin stays"


def test_names_are_shown_as_text_never_as_markup(tab, logdir, board):
    import numpy as np

    from lightning_gradguard.tensorboard.sink import TensorBoardSink
    from tests.tensorboard.synthetic import VANISHING

    evil = "<img src=x onerror=alert(1)>"
    finding = VANISHING.__class__(rule=evil, severity="warning", message=evil, step=3, layers=(evil,), remedies=(evil,))
    sink = TensorBoardSink(logdir / "evil")
    for step in range(5):
        sink.write(make_record(step, (evil, "b"), np.ones(2), findings=(finding,)))
    sink.close()
    board.wait_until_read()
    tab.open(run="evil")
    assert evil in tab.find("#diagnosis").text
    assert tab.all("img") == []


def test_the_scalars_and_the_text_stand_without_the_tab(board):
    scalars = json.loads(board.get("data/plugin/scalars/tags"))["vanishing"]
    assert {"grad_norm/blocks.0", "grad_norm_total/pre_clip", "gradguard/nonfinite_total"} <= set(scalars)
    texts = json.loads(board.get("data/plugin/text/tags"))["vanishing"]
    assert "gradguard/diagnosis" in texts
    text = board.get("data/plugin/text/text?run=vanishing&tag=gradguard/diagnosis")
    assert "vanishing-over-depth" in text
    assert next(iter(vanishing_run())).layers[0] in text

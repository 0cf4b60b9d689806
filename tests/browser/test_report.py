"""The report page: the same picture, without a server."""

import pytest

from lightning_gradguard.report.command import main
from tests.browser.tab import Tab

EVERY_STEP = (91, 102, 115)  # the colour of that curve


@pytest.fixture(scope="module")
def page(tmp_path_factory, logdir):
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main([str(logdir), "--out", str(out)]) == 2, "one of the runs cannot be read"
    return out


def test_the_report_shows_the_same_picture_from_a_file(driver, page):
    driver.get_log("browser")
    driver.get(f"file://{page}#p.gradguard.run=busy&p.gradguard.compare=calm")
    tab = Tab(driver, "")
    tab.wait(lambda: tab.data("state") == "ready", "picture")
    assert tab.data("columns") == "300"
    assert len(tab.colours()) > 150
    tab.find("#events tr[data-kind=nonfinite]").click()
    tab.wait(lambda: tab.data("pin") == "1860", "pin")
    assert "p.gradguard.step=1860" in driver.current_url
    tab.choose("stat", "norm")
    tab.choose("run", "vanishing")
    tab.wait(lambda: tab.all("#diagnosis .finding"), "finding")
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    driver.get("about:blank")
    driver.get(f"file://{page}")
    tab.wait(lambda: tab.data("state") == "runs", "list of runs")
    assert "what was written with its tensors is not ours" in tab.find("#unreadable").text


def test_the_report_draws_every_step_and_tells_below_it_which_clip_the_run_asks_for(driver, page):
    driver.get("about:blank")
    driver.get(f"file://{page}#p.gradguard.run=every_step")
    tab = Tab(driver, "")
    tab.wait(lambda: tab.data("state") == "ready", "picture")
    with_curve = tab.colours("picture").get(EVERY_STEP, 0)
    assert not tab.find("#trial").is_displayed(), "a page without a server tries no policy"
    clips = {row.text.split(":")[0]: row for row in tab.all("#clips details")}
    clips["every_step"].find_element("tag name", "summary").click()
    assert "ZClip()" in clips["every_step"].find_element("tag name", "table").text
    tab.choose("run", "busy")
    tab.wait(lambda: tab.data("state") == "ready" and "busy" in driver.current_url, "a run without norms")
    assert tab.colours("picture").get(EVERY_STEP, 0) < with_curve

"""The report page: the same picture, without a server."""

import pytest

from lightning_gradguard.report.command import main
from tests.browser.tab import Tab


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

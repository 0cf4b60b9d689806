"""The tab without data, under a path prefix, with the slow loader, and when TensorBoard goes away."""

import pytest
from selenium.webdriver.common.by import By

from tests.browser.conftest import Board
from tests.browser.tab import Tab
from tests.tensorboard.synthetic import busy_run, write_run


@pytest.fixture(scope="module")
def slow_board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    board = Board(folder, "--load_fast=false", prefix="/under/here")
    yield board
    if board.process.poll() is None:
        board.stop()


def test_an_empty_folder_is_explained_and_fills_by_itself(driver, slow_board):
    driver.get_log("browser")
    tab = Tab(driver, slow_board.address)
    driver.get(f"{slow_board.address}/data/plugin_entry.html?name=gradguard")
    tab.wait(lambda: tab.data("state") == "empty", "empty state")
    assert "No gradients yet" in tab.text
    assert "trainer = Trainer(callbacks=[GradGuard()])" in tab.text
    write_run(slow_board.folder / "busy", busy_run(num_records=50))
    tab.wait(lambda: tab.data("state") == "ready", "the picture of the first run")
    assert tab.complaints() == []


def test_the_tab_works_under_a_path_prefix_with_the_slow_loader(driver, slow_board):
    driver.get_log("browser")
    slow_board.wait_until_read()
    tab = Tab(driver, slow_board.address).open(run="busy")
    assert len(tab.colours()) > 100
    assert tab.data("columns") == "50"
    assert tab.complaints() == []
    driver.switch_to.default_content()
    assert "GRADIENT FLOW" in driver.find_element(By.TAG_NAME, "body").text.upper()


def test_when_tensorboard_is_gone_the_picture_stays_and_the_tab_says_why_it_is_old(driver, slow_board):
    tab = Tab(driver, slow_board.address).open(run="busy")
    slow_board.stop()
    tab.wait(lambda: "TensorBoard does not answer" in tab.find("#live").text, "notice")
    assert tab.data("state") == "ready"
    assert len(tab.colours()) > 100


def test_when_tensorboard_is_gone_the_list_of_runs_stays_and_says_so(driver, tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name, busy_run(num_records=5))
    board = Board(tmp_path, "--load_fast=false")
    board.wait_until_read()
    tab = Tab(driver, board.address).load(state="runs")
    board.stop()
    tab.wait(lambda: "TensorBoard does not answer" in tab.find("#overview .reason").text, "notice")
    assert len(tab.all("#overview tbody tr")) == 2

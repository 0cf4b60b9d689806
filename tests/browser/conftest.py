"""A real TensorBoard and a real browser, started once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tensorboard.util.tensor_util import make_tensor_proto

from tests.browser.tab import Tab
from tests.tensorboard.reading import Ends, wait_until_read
from tests.tensorboard.synthetic import (
    FOREIGN_TIME,
    busy_run,
    cleared_run,
    gan_run,
    gappy_run,
    large_run,
    only_nan_run,
    sampled_run,
    steady_run,
    trained_run,
    vanishing_run,
    with_every_norm,
    write_foreign,
    write_run,
)

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
_ADDRESS = re.compile(r"TensorBoard \S+ at (http://127\.0\.0\.1:\d+)")


def browser_binaries() -> tuple[str, str]:
    """Paths of browser and driver. A missing one is a failure, here and in CI: an untested tab is a broken one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        missing = " and ".join(name for name, path in [("chromium", browser), ("chromedriver", driver)] if not path)
        pytest.fail(
            f"{missing} not found; the Gradient flow tab is tested in a real browser. "
            "On Debian or Ubuntu: apt-get install chromium chromium-driver",
            pytrace=False,
        )
    return browser, driver


class Board:
    """A TensorBoard of our own on a port of this machine that it finds itself, so that nobody can take it before."""

    def __init__(self, logdir: Path, *flags: str, prefix: str = "") -> None:
        self.folder = logdir
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would stop it when full
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        options = ["--port", "0", "--reload_interval", "1", "--path_prefix", prefix, *flags]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=self._said)
        self.address = self._wait_for_address(prefix)

    def get(self, route: str) -> str:
        """The answer to one request."""
        with urllib.request.urlopen(f"{self.address}/{route}", timeout=60) as response:
            return response.read().decode()

    def wait_until_read(self) -> None:
        """Waits until every run of the folder is read to the last event that is written by now."""
        wait_until_read(self.folder, self._read_ends)

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(timeout=60)
        self._said.close()

    def _wait_for_address(self, prefix: str, timeout: float = 120.0) -> str:
        end = time.monotonic() + timeout
        while not (found := _ADDRESS.search(said := Path(self._said.name).read_text())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"TensorBoard gave no address within {timeout:g} s, or ended: {said}")
            time.sleep(0.1)
        return found[1] + prefix

    def _read_ends(self) -> Ends:
        answer = json.loads(self.get("data/plugin/gradguard/runs"))
        ends = {run["name"]: run["wall_time"] for run in answer["runs"]}
        return ends | dict.fromkeys(answer["unreadable"], FOREIGN_TIME)


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    write_run(folder / "busy", busy_run())
    write_run(folder / "calm", busy_run(seed=5))
    write_run(folder / "gan", gan_run())
    write_run(folder / "large", large_run(num_layers=1000, num_records=30))
    write_run(folder / "residual", steady_run())
    write_run(folder / "cleared", cleared_run())
    write_run(folder / "sampled", sampled_run())
    write_run(folder / "gappy", gappy_run())
    for name in ("plain", "normalized", "sigmoid", "unscaled"):
        write_run(folder / f"trained_{name}", trained_run(name))
    write_run(folder / "single", (record for record in busy_run() if record.cause))
    write_run(folder / "vanishing", vanishing_run())
    write_run(folder / "nan", only_nan_run())
    write_run(folder / "every_step", with_every_norm(steady_run()))
    write_foreign(folder / "foreign", [("flow", b"not json", make_tensor_proto([[1.0]]))])
    return folder


@pytest.fixture(scope="session")
def board(logdir: Path) -> Iterator[Board]:
    """All runs, as TensorBoard starts by itself: with the fast loader where there is one."""
    board = Board(logdir)
    board.wait_until_read()
    yield board
    board.stop()


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


def open_browser(profile: Path, downloads: Path, size: str = "1400,950") -> webdriver.Chrome:
    """A browser without a window, with a profile of its own."""
    browser, driver_path = browser_binaries()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--window-size={size}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver_path))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[webdriver.Chrome]:
    driver = open_browser(tmp_path_factory.mktemp("profile"), downloads)
    yield driver
    driver.quit()


@pytest.fixture
def tab(driver: webdriver.Chrome, board: Board) -> Iterator[Tab]:
    """The tab; afterwards nothing of ours may have complained on the console."""
    driver.get_log("browser")
    tab = Tab(driver, board.address)
    yield tab
    assert tab.complaints() == []

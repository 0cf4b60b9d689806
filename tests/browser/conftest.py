"""A real TensorBoard and a real browser, started once."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tensorboard.util.tensor_util import make_tensor_proto

from tests.browser.tab import Tab
from tests.tensorboard.synthetic import (
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
    """A TensorBoard of our own on a free port of this machine."""

    def __init__(self, logdir: Path, *flags: str, prefix: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}{prefix}"
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        options = ["--port", str(port), "--reload_interval", "1", "--path_prefix", prefix, *flags]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def get(self, route: str) -> str:
        """The answer to one request."""
        with urllib.request.urlopen(f"{self.address}/{route}", timeout=10) as response:
            return response.read().decode()

    def wait_for(self, text: str, timeout: float = 40.0) -> None:
        """Waits until the list of runs has a text in it."""
        end = time.monotonic() + timeout
        answer = ""
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"TensorBoard ended: {self.process.stderr.read()}")
            try:
                answer = self.get("data/plugin/gradguard/runs")
            except OSError:
                answer = ""
            if text in answer:
                return
            time.sleep(0.2)
        raise TimeoutError(f"no {text!r} in {answer!r}")

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(timeout=20)
        self.process.stderr.close()


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    write_run(folder / "busy", busy_run())
    write_run(folder / "calm", busy_run(seed=5))
    write_run(folder / "gan", gan_run())
    write_run(folder / "large", large_run(num_layers=1000, num_records=120))
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
    board.wait_for('"vanishing"')
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

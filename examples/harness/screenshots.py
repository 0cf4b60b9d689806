"""Takes the gallery's pictures of TensorBoard: two studies run, the real TensorBoard opens on them, a browser looks.

    python examples/harness/screenshots.py --out examples/results
    python examples/harness/gallery.py    # puts them on the page, with the commands, date and machine recorded here

It takes two minutes, and needs chromium, chromedriver, and the tests of this repository. Nothing is drawn by hand:
what is clicked here, a reader can click.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By

sys.path.insert(0, str(Path(__file__).parents[1]))  # the harness
sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests

from harness import studies
from harness.data import UsageError
from harness.gallery import SCREENSHOTS
from harness.report import load
from tests.browser.conftest import Board, browser_binaries, open_browser
from tests.browser.tab import Tab

EXAMPLES = Path(__file__).parents[1]
BROWSER_BAR = 143  # pixels of a window that a page does not get
WIDTH = 1400
CURVES = ("grad_norm_total/post_clip", "grad_norm_total/pre_clip", "gradguard/clipped_fraction")
LOSS = "train/bits_per_character"
# as set with the gear: no smoothing that hides a spike, no curve cut off, two cards in a row
SETTINGS = {
    "scalarSmoothing": 0,
    "ignoreOutliers": False,
    "stepSelectorEnabled": False,
    "timeSeriesCardMinWidth": 500,
    "timeSeriesSettingsPaneOpened": False,
}
# every element that matches, also those inside the shadow trees of the older dashboards
EVERYWHERE = """
const found = [];
const walk = (root) => root.querySelectorAll("*").forEach((element) => {
  if (element.matches(arguments[0])) found.push(element);
  if (element.shadowRoot) walk(element.shadowRoot);
});
walk(document);
return found;
"""


@dataclass(frozen=True)
class Shot:
    """A picture in the gallery, and how it came about.

    Attributes:
        file: its name, beside the recorded results.
        study: which runs it shows.
        command: what trained them.
    """

    file: str
    study: str
    command: str


def curves(driver: webdriver.Chrome, address: str) -> None:
    """The runs of the language model in the Time Series dashboard, norms and loss in decades."""
    resize(driver, 900)
    driver.get(f"{address}/data/logdir")  # a small page of the same origin, to leave the settings there
    driver.execute_script("localStorage.setItem('_tb_global_settings', arguments[0])", json.dumps(SETTINGS))
    tags = urllib.parse.quote("|".join((*CURVES, LOSS)))
    driver.get(f"{address}/?tagFilter={tags}#timeseries")
    cards = wait(lambda: found(driver, "scalar-card"), len(CURVES) + 1)
    for card in cards:
        if "clipped_fraction" not in card.text:
            card.find_element(By.CSS_SELECTOR, "[aria-label='More line chart options']").click()
            [log] = [item for item in wait(lambda: found(driver, "[mat-menu-item]"), 1) if "log scale" in item.text]
            log.click()
            wait(lambda: found(driver, "[mat-menu-item]"), 0)
    pointer = ActionBuilder(driver)
    pointer.pointer_action.move_to_location(WIDTH // 2, 30)  # off the curves, which have tooltips
    pointer.perform()


def hparams(driver: webdriver.Chrome, address: str) -> None:
    """The same runs as a table: the variant and what came of it."""
    resize(driver, 440)
    driver.get(f"{address}/#hparams")
    for box in wait(lambda: found(driver, "paper-checkbox.hparam-checkbox"), 1):
        if box.text.strip() != "variant":  # the same in every run
            box.click()


def flow(driver: webdriver.Chrome, address: str) -> None:
    """The plain CNN in our own tab, compared with the cured one."""
    resize(driver, 885)
    Tab(driver, address).load("&p.gradguard.run=plain/seed-0&p.gradguard.compare=cured/seed-0")


def resize(driver: webdriver.Chrome, height: int) -> None:
    driver.get("about:blank")  # or the next address changes the fragment alone, and nothing is loaded
    driver.set_window_size(WIDTH, height + BROWSER_BAR)


def found(driver: webdriver.Chrome, selector: str) -> list:
    return driver.execute_script(EVERYWHERE, selector)


def wait(look: Callable[[], list], count: int, timeout: float = 30.0) -> list:
    """Waits for so many elements, or for none; TensorBoard reloads what it shows every few seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        elements = look()
        if len(elements) >= count and bool(elements) == bool(count):
            return elements
        time.sleep(0.1)
    raise TimeoutError(f"TensorBoard shows {len(elements)} elements after {timeout:g} s, not {count}")


# name of the study and its script, its options, and what to look at afterwards
PICTURES: list[tuple[str, list[str], dict[str, Callable[[webdriver.Chrome, str], None]]]] = [
    (
        "lstm_language_model",
        ["--mitigate", "all"],
        {"tensorboard_curves.png": curves, "tensorboard_hparams.png": hparams},
    ),
    ("cnn20", ["--quick", "--diagnose"], {"tensorboard_flow.png": flow}),
]


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/screenshots"), metavar="FOLDER", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file, not a folder")
    try:
        browser_binaries()
    except pytest.fail.Exception as missing:
        raise UsageError(str(missing)) from missing
    args.out.mkdir(parents=True, exist_ok=True)
    shots: list[Shot] = []
    with tempfile.TemporaryDirectory() as scratch:
        driver = open_browser(Path(scratch, "profile"), Path(scratch, "downloads"))
        try:
            for name, options, pictures in PICTURES:
                command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
                subprocess.run([*command, "--logdir", scratch, "--record", scratch], check=True)
                study, about = load(Path(scratch, f"{name}.json"))
                board = Board(Path(scratch, name))
                try:
                    for variant in study.variants():
                        board.wait_for(f'"{variant}/')
                    for file, show in pictures.items():
                        show(driver, board.address)
                        time.sleep(2)  # for what TensorBoard animates
                        driver.switch_to.default_content()
                        driver.save_screenshot(str(args.out / file))
                        shots.append(Shot(file, name, study.command))
                        print(f"wrote {args.out / file}")
                finally:
                    board.stop()
        finally:
            driver.quit()
    record = args.out / SCREENSHOTS
    record.write_text(json.dumps(about | {"shots": [asdict(shot) for shot in shots]}) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    studies.run(main)

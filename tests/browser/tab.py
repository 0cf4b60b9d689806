"""The *Gradient flow* tab as a user has it before them."""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

FRAME = "iframe[src*='name=gradguard']"

# Counts the pixels of the figure by colour, "r,g,b" to number.
COLOURS = """
const canvas = document.getElementById(arguments[0]);
const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const counts = {};
for (let i = 0; i < data.length; i += 4) {
  if (data[i + 3] < 255) continue;
  const key = `${data[i]},${data[i + 1]},${data[i + 2]}`;
  counts[key] = (counts[key] || 0) + 1;
}
return counts;
"""


class Tab:
    """Opens the tab, reads what it shows, and does what a user does."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, **link: str) -> Tab:
        """Goes to the tab by a link; where it is open already, by changing the address, which is much quicker."""
        pairs = "".join(f"&p.gradguard.{name}={urllib.parse.quote(value)}" for name, value in link.items())
        if not self.driver.current_url.startswith(f"{self.address}/#gradguard") or not self.data("drawn"):
            return self.load(pairs)
        drawn = self.data("drawn")
        address = f"#gradguard{pairs}&p.gradguard.time={time.monotonic_ns()}"
        self.driver.execute_script("window.parent.location.hash = arguments[0]; window.scrollTo(0, 0)", address)
        self.wait(lambda: self.data("drawn") != drawn and self.data("state") == "ready", "new picture")
        for name in {"run", "compare", "stat", "rows"} & set(link):
            self.wait(lambda name=name: self.chosen(name) == link[name], f"{name} {link[name]}")
        if "step" in link:
            self.wait(lambda: self.data("pin") == link["step"], f"pin at {link['step']}")
        return self

    def load(self, pairs: str = "", state: str = "ready") -> Tab:
        """Loads TensorBoard anew, at the tab, and waits for a picture or for the list of runs."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#gradguard{pairs}")
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, FRAME), "the frame of the tab")
        self.driver.switch_to.frame(self.driver.find_element(By.CSS_SELECTOR, FRAME))
        self.wait(lambda: self.data("state") == state, state)
        return self

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
        """Waits for something to become true; says what did not."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(StaleElementReferenceException):  # the page was drawn anew while we looked
                if value := condition():
                    return value
            time.sleep(0.05)
        raise TimeoutError(f"no {what} within {timeout:g} s; the page is {self.data('state')!r}: {self.text[:400]!r}")

    def data(self, name: str) -> str | None:
        """A ``data-`` attribute of the page."""
        return self.driver.execute_script("return document.documentElement.dataset[arguments[0]] ?? null", name)

    @property
    def text(self) -> str:
        """All text of the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def find(self, selector: str) -> WebElement:
        """One element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Every element."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def choose(self, control: str, value: str) -> None:
        """Picks a value of a drop-down list, and waits until it is drawn; a default is not in the link."""
        drawn = self.data("drawn")
        if self.chosen(control) != value:
            Select(self.find(f"#{control}")).select_by_value(value)
            self.wait(lambda: self.data("drawn") != drawn, f"picture after {control} {value}")
        self.wait(lambda: self.linked(control) in (value, None), f"{control} {value}")

    def chosen(self, control: str) -> str:
        """The value that a drop-down list shows."""
        return self.find(f"#{control}").get_property("value")

    def linked(self, name: str) -> str | None:
        """What the address of the page says of one choice."""
        hash_ = self.driver.execute_script("return window.parent.location.hash")
        values = urllib.parse.parse_qs(hash_.lstrip("#"))
        return values.get(f"p.gradguard.{name}", [None])[0]

    def colours(self, canvas: str = "base") -> dict[tuple[int, int, int], int]:
        """How many pixels of the figure have each colour."""
        counts = self.driver.execute_script(COLOURS, canvas)
        return {tuple(map(int, key.split(","))): count for key, count in counts.items()}

    def point(self, x: float, y: float) -> ActionChains:
        """The pointer at a share of the picture's width and height."""
        picture = self.find("#picture")
        size = picture.size
        self.driver.execute_script("window.scrollTo(0, 0)")
        offset = (round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
        return ActionChains(self.driver, duration=20).move_to_element_with_offset(picture, *offset)

    def press(self, *keys: str) -> None:
        """Keys on the page, not in a field."""
        self.find("#picture").send_keys(*keys)

    def is_dark(self, dark: bool) -> None:
        """What TensorBoard's own switch does to its page."""
        self.driver.execute_script("window.parent.document.body.classList.toggle('dark-mode', arguments[0])", dark)

    def complaints(self) -> list[str]:
        """Errors on the console; those of TensorBoard's own pages are not ours to fix."""
        entries = self.driver.get_log("browser")
        return [e["message"] for e in entries if e["level"] == "SEVERE" and "gradguard" in e["message"]]

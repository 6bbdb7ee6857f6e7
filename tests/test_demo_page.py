"""The demo's page in a real browser: drawn on with the pointer, worked by keys, wide and narrow."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import browser, wait_for

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("gradio")
pytestmark = pytest.mark.browser

THREE = [
    (-50, -80),
    (50, -20),
    (40, 20),
    (5, 30),
    (-30, 30),
    (-25, 8),
    (30, 6),
    (28, 30),
    (0, 40),
    (-40, 30),
    (-55, -15),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the command."""
    folder = tmp_path_factory.mktemp("demo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "odenet_lightning", "demo", "--port", str(port)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}", "Neural ODE", seconds=600)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def page(address: str) -> Iterator[Callable[[int, str], Any]]:
    """Opens the page, so wide, light or dark; afterwards all its requests have gone to this machine."""
    if browser() is None or shutil.which("chromedriver") is None:
        pytest.skip("there is no chromium with its driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))

    def opened(width: int, theme: str) -> Any:
        size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"{address}/?__theme={theme}")
        until(driver, "#pad canvas", lambda element: element.is_displayed())
        return driver

    try:
        yield opened
        sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]
        assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
        assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def until(driver: Any, selector: str, holds: Callable[[Any], bool], seconds: float = 120.0) -> Any:
    """The first element of a selector, once something holds for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            for element in driver.find_elements("css selector", selector)[:1]:
                if holds(element):
                    return element
        except webdriver.remote.errorhandler.StaleElementReferenceException:  # it was replaced while we looked
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{selector} is not as expected: {driver.find_element('css selector', 'body').text}")


def draw_three(driver: Any) -> None:
    pad = driver.find_element("css selector", "#pad canvas")
    (x, y), *moves = THREE
    pointer = webdriver.ActionChains(driver, duration=20).move_to_element_with_offset(pad, x, y).click_and_hold()
    for move in moves:
        pointer.move_by_offset(*move)
    pointer.release().perform()


def test_a_drawn_three_is_read_and_followed_over_time(page: Callable[[int, str], Any]) -> None:
    driver = page(1280, "light")
    draw_three(driver)
    until(driver, "#answer .first", lambda row: row.text.startswith("3"))
    until(driver, "#told", lambda told: "Midpoint takes 5 steps" in " ".join(told.text.split()))
    until(driver, "#maps img", lambda image: image.get_attribute("alt").endswith("at t = 1"))
    slider = driver.find_element("css selector", "#time input[type=range]")
    slider.send_keys(webdriver.Keys.HOME)
    for name in ("#maps", "#flow"):
        until(driver, f"{name} img", lambda image: "at t = 0" in image.get_attribute("alt"))
    driver.find_element("css selector", "#pad button").click()  # the paper is white again
    white = "const c = document.querySelector('#pad canvas'); "
    white += "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.every(v => v === 255)"
    assert driver.execute_script(white)


def test_the_network_of_one_step_is_chosen_by_keys(page: Callable[[int, str], Any]) -> None:
    driver = page(1280, "dark")
    draw_three(driver)
    until(driver, "#answer .first", lambda row: row.text.startswith("3"))
    network = driver.find_element("css selector", "#network input")
    network.send_keys(webdriver.Keys.ARROW_DOWN)
    until(driver, "[role=option], ul[role=listbox]", lambda choices: choices.is_displayed())
    network.send_keys(webdriver.Keys.ENTER)
    until(driver, "#told", lambda told: "Euler takes 1 step and evaluates f once" in " ".join(told.text.split()))
    driver.find_element("css selector", "#changed").click()
    until(driver, "#told", lambda told: "They disagree" in told.text)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_small_screens_do_not_scroll_sideways(page: Callable[[int, str], Any], theme: str) -> None:
    driver = page(400, theme)
    driver.find_element("css selector", "#take").click()
    until(driver, "#flow img", lambda image: image.is_displayed())
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 400


def test_a_broken_picture_is_a_sentence_on_the_page(page: Callable[[int, str], Any], tmp_path: Path) -> None:
    driver = page(1280, "light")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    driver.find_element("css selector", "input[type=file]").send_keys(str(broken))
    told = until(driver, "#told", lambda told: "This picture cannot be used" in told.text)
    assert "Traceback" not in driver.find_element("css selector", "body").text
    assert "\n" not in told.text

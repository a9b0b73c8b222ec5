"""A real browser for tests of pages: Chromium without a window, as Debian installs it (chromium, chromium-driver)."""

import contextlib
import json
import shutil
from collections.abc import Iterator

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_TOOLS = ("chromium", "chromedriver")
MISSING = " and ".join(tool for tool in _TOOLS if shutil.which(tool) is None)
"""What this machine lacks of it; `.ci/run` installs it."""
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required")


@contextlib.contextmanager
def opened() -> Iterator[webdriver.Chrome]:
    """Have a browser within the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def look_as(driver: webdriver.Chrome, *, width: int, scheme: str) -> None:
    """Show pages in a window of so many pixels, to somebody who prefers "light" or "dark"."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def requests(driver: webdriver.Chrome) -> list[str]:
    """Return the addresses that were asked for since the last call, without what is inside the page."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def complaints(driver: webdriver.Chrome) -> list[str]:
    """Return what the browser's console has said since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]

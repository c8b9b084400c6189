"""A headless Chromium, driven by selenium: Debian's packages chromium and chromium-driver, and pip's selenium."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SHOTS = os.environ.get("FLANX_SCREENSHOTS")  # a folder, where somebody wants to look


@contextlib.contextmanager
def browser(size: str = "desktop", scheme: str = "light", downloads: pathlib.Path | None = None) -> Iterator[Any]:
    """A browser of a size and a colour scheme, or a skip that says what is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    width, height = SIZES[size]
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    if size == "phone":
        metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    if downloads:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        yield driver
    finally:
        driver.quit()


def press(driver: Any, *keys: str) -> None:
    """Types into whatever has the focus."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def until(driver: Any, script: str) -> Any:
    """What an expression of JavaScript becomes once it is true; an error after ten seconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 10, 0.02).until(lambda d: d.execute_script(f"return {script}"))


def shot(driver: Any, name: str) -> None:
    """A picture into FLANX_SCREENSHOTS, where that is set."""
    if SHOTS:
        pathlib.Path(SHOTS).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(f"{SHOTS}/{name}.png")


CONTRAST = """
const light = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const sum = (rgb) => [0.2126, 0.7152, 0.0722].reduce((all, w, i) => all + w * light(rgb[i] / 255), 0);
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const wrong = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const box = element.getBoundingClientRect();
  if (!own || box.width < 2 || !element.checkVisibility() || element.closest(":disabled, script, style")) continue;
  let behind = element, back = [0, 0, 0, 0];
  for (; behind && back[3] < 1; behind = behind.parentElement) back = parse(getComputedStyle(behind).backgroundColor);
  const pair = [sum(parse(getComputedStyle(element).color)), sum(back)].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < 4.5) wrong.push(`${element.tagName}#${element.id}.${element.className}: ${ratio.toFixed(2)}`);
}
return wrong;
"""


def low_contrast(driver: Any) -> list[str]:
    """The visible elements with text whose contrast is under 4.5 (WCAG 2.2, AA); opacity aside."""
    return driver.execute_script(CONTRAST)


def unlabelled(driver: Any) -> list[str]:
    """The visible controls that have no accessible name; where a dialog is open, those in it."""
    within = driver.find_elements("css selector", "dialog[open]")[:1] or [driver]
    found = within[0].find_elements("css selector", "button, input, textarea, [role=region], [role=progressbar]")
    found += [each for each in within if each is not driver]
    return [each.get_attribute("outerHTML")[:80] for each in found if each.is_displayed() and not each.accessible_name]

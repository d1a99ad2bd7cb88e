"""Each tab of the page, used once in a headless Chromium as a person would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mavilt_pl.inference.mavilt import MAViLT
from mavilt_pl.serving.examples import example

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.timeout(300),
]
TITLE = "right pneumothorax"


@pytest.fixture(scope="module")
def page(server: Any) -> Iterator[Any]:
    """The page, with the addresses that it asked for in `page.addresses`."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.addresses = []
        page.on("request", lambda request: page.addresses.append(request.url))
        page.goto(server.address)
        page.get_by_label(TITLE).check()
        page.wait_for_selector("figure img")
        yield page
        browser.close()


@pytest.fixture(scope="module")
def model(chain: Path) -> MAViLT:
    return MAViLT.from_pretrained(chain / "stage2", device="cpu")


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_every_tab_does_what_it_says(page: Any, model: MAViLT, tmp_path: Path) -> None:
    pixels = example(TITLE, model.vqgan.autoencoder.image_size, "pad").pixels
    assert page.get_by_text("Research use only. No medical device.").is_visible()
    page.get_by_role("button", name="Write a report").click()
    written = page.get_by_role("tabpanel").locator("textarea").first
    page.wait_for_function("box => box.value.length > 0", arg=written.element_handle())
    assert written.input_value().startswith(repr(model.report(pixels).text)[1:20])

    open_tab(page, "Ask")
    page.get_by_label("Question").fill("Is there a pneumothorax?")
    page.get_by_label("Expected answers").fill("yes, no, maybe")
    page.get_by_role("button", name="Ask", exact=True).click()
    shares = model.ask(pixels, "Is there a pneumothorax?", ["yes", "no", "maybe"]).probabilities
    for answer, share in shares.items():
        bar = page.locator(f'[data-testid="{answer}-confidence-set"]')
        bar.wait_for()
        assert f"{share:.0%}" in bar.inner_text()

    open_tab(page, "Draw")
    page.get_by_label("Report, or findings").fill("Edema.")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("synthetic, seed 1").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="DICOM").first.click()
    assert download.value.suggested_filename == "synthetic-0.dcm"

    open_tab(page, "Results")
    assert page.get_by_label("checkpoint, sha256").input_value() == model.sha256
    open_tab(page, "History")
    page.get_by_text("2 synthetic radiographs").first.wait_for()
    page.screenshot(path=tmp_path / "page.png")
    painted = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert painted.std() > 10


def test_the_page_asks_nobody_else(page: Any, server: Any) -> None:
    """No fonts, scripts or analytics of others: hospitals' networks are closed."""
    outside = []
    for address in page.addresses:
        if not address.startswith((server.address, "data:", "blob:")):
            outside.append(address)
    assert page.addresses and not outside


def test_it_fits_a_narrow_screen(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 420

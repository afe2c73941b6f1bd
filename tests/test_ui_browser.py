"""The page in a real browser, without a window: typed, watched, painted, and asked from nowhere else."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest
from cli_toys import write_model
from PIL import Image

from imagen_pytorch.image_metadata import read_settings

pytest.importorskip("gradio", reason="the page is made of gradio, which is not installed")
api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture
def folder(tmp_path):
    write_model(str(tmp_path / "imagen.pt"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    return tmp_path


@pytest.fixture
def asked():
    return []


@pytest.fixture
def page(folder, asked):
    from imagen_pytorch.cli._studio import LocalStudio
    from imagen_pytorch.ui.server import serving

    studio = LocalStudio(str(folder), str(folder / "images"), "cpu")
    with serving(studio, "127.0.0.1", 0) as address, api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        browser.close()


def test_the_page_in_a_browser(page, folder, asked):
    expect = api.expect
    expect.set_options(timeout=120_000)
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name=str(folder / "imagen.pt")).click()

    page.get_by_role("button", name="Generate", exact=True).click()  # without a prompt
    expect(page.get_by_test_id("toast-text")).to_have_text("Type a prompt first.")
    expect(page.locator("#status")).to_contain_text("Type a prompt first.")

    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Prompt", exact=True).fill("a red heart")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("seed 7")
    expect(page.locator("#images img")).to_have_count(4)
    made = sorted((folder / "images").glob("a_red_heart*.png"))
    assert len(made) == 4 and read_settings(made[0])["prompt"] == "a red heart"

    page.get_by_role("tab", name="Inpaint").click()
    page.locator("#mask input[type=file]").first.set_input_files(folder / "red.png")
    canvas = page.locator("#mask canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.wait_for_timeout(1500)
    page.mouse.move(middle[0] - 15, middle[1])
    page.mouse.down()
    page.mouse.move(*middle, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Paint that part").click()
    expect(page.locator("#status")).to_contain_text("inpainting")
    (given,) = (folder / "images").glob("given-*.png")
    alpha = Image.open(given).getchannel("A").histogram()
    assert 0 < alpha[0] < 64 * 64 / 2 and alpha[0] + alpha[255] == 64 * 64

    page.get_by_label("Prompt", exact=True).fill("")
    page.locator("#from input[type=file]").set_input_files(made[1])
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red heart")
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(read_settings(made[1])["seed"]))

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(page.url).netloc}

"""Photograph the three tabs of the demo, on pictures that are free to show, into ``figures/demo``."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

import minicliplib as mc
from minicliplib.demo import FREE, Demo, Server, collection

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
expect.set_options(timeout=30_000)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@contextmanager
def browser(url: str) -> Iterator[tuple[Page, list[str]]]:
    """Open a page in headless Chromium; also the addresses off this machine that it asked for, all in vain."""
    outside = []

    def stay(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            return route.continue_()
        outside.append(route.request.url)
        return route.abort()

    options = {"executable_path": CHROMIUM, "args": FLAGS, "viewport": {"width": 1100, "height": 1000}}
    with (
        tempfile.TemporaryDirectory() as profile,
        sync_playwright() as playwright,
        playwright.chromium.launch_persistent_context(profile, **options) as context,
    ):
        context.route("**/*", stay)
        page = context.pages[0]
        page.goto(url)
        yield page, outside


def tab(page: Page, name: str) -> Locator:
    """Open a tab and return what it holds."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def account(panel: Locator) -> Locator:
    """Return the line that says what was chosen, from how many, in what time."""
    return panel.locator(".prose.account")


def main() -> None:
    """Serve the demo, use each tab as a visitor would, and keep a picture of it."""
    folder = mc.output_root() / "figures" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with Server(Demo(mc.load("mixed"), collection(FREE))) as server, browser(server.url) as (page, _):

        def photograph(name: str) -> None:
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # the page fades its news in
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            with Image.open(folder / f"{name}.png") as picture:
                picture.convert("RGB").quantize(200).save(folder / f"{name}.png", optimize=True)

        panel = tab(page, "Find images")
        panel.get_by_label("A sentence").fill("A cat looks at the camera.")
        panel.get_by_label("Show why").check()
        panel.get_by_role("button", name="Find").click()
        expect(account(panel)).to_contain_text("images, in")
        photograph("find_images")

        panel = tab(page, "Find captions")
        panel.get_by_label("Show why").check()
        panel.locator(".grid-wrap button").nth(2).click()
        expect(account(panel)).to_contain_text("captions, in")
        photograph("find_captions")

        panel = tab(page, "Name it")
        panel.locator(".grid-wrap button").nth(2).click()
        expect(account(panel)).to_contain_text("labels, in")
        photograph("name_it")


if __name__ == "__main__":
    main()

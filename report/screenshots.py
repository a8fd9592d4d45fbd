"""Photograph the three tabs of the demo, on images that are free to show, into ``figures/demo``."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, Route, ViewportSize, expect, sync_playwright

import minicliplib as mc
from minicliplib.apps.demo import FREE, FREE_LIMIT, Demo, Server

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
VIEWPORT = ViewportSize(width=1100, height=1000)
PATIENCE = 30_000  # milliseconds that the page may take to show what is expected of it
COLOURS = 200  # of a kept image: it looks the same, and its file is smaller


def chromium() -> str | None:
    """Return the path of the browser, or None where none is installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    return None


@contextmanager
def browser(url: str) -> Iterator[tuple[Page, list[str]]]:
    """Open a page in headless Chromium, which is kept from reaching any other computer.

    Yields the page, and a list of the addresses off this computer that it has asked for in vain.
    """
    expect.set_options(timeout=PATIENCE)
    outside: list[str] = []

    def stay_here(route: Route) -> None:
        address = route.request.url
        if address.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(address)
            route.abort()

    with (
        tempfile.TemporaryDirectory() as profile,
        sync_playwright() as playwright,
        playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium(), args=FLAGS, viewport=VIEWPORT
        ) as context,
    ):
        context.route("**/*", stay_here)
        page = context.pages[0]
        page.goto(url)
        yield page, outside


def open_tab(page: Page, name: str) -> Locator:
    """Open a tab of the demo and return what it holds."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def summary_of(panel: Locator) -> Locator:
    """Return the line that says how many were chosen, from how many, and in what time."""
    return panel.locator(".prose.summary")


def photograph(page: Page, path: Path) -> None:
    """Save the whole page as a PNG of few colours."""
    # nothing lies under the mouse, and the page has faded in what is new
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def show_images(page: Page) -> None:
    """Ask for a cat, as a visitor would, with the reasons."""
    panel = open_tab(page, "Find images")
    panel.get_by_label("A sentence").fill("A cat looks at the camera.")
    panel.get_by_label("Show why").check()
    panel.get_by_role("button", name="Find").click()
    expect(summary_of(panel)).to_contain_text("images, in")


def show_captions(page: Page) -> None:
    """Ask for the captions of the third image, with the reason."""
    panel = open_tab(page, "Find captions")
    panel.get_by_label("Show why").check()
    panel.locator(".grid-wrap button").nth(2).click()
    expect(summary_of(panel)).to_contain_text("captions, in")


def show_names(page: Page) -> None:
    """Ask for names of the third image."""
    panel = open_tab(page, "Name it")
    panel.locator(".grid-wrap button").nth(2).click()
    expect(summary_of(panel)).to_contain_text("labels, in")


def main() -> None:
    """Serve the demo, use each tab as a visitor would, and keep an image of it."""
    folder = mc.output_root() / "figures" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(mc.load("everyday"), mc.load_dataset(FREE, "test", limit=FREE_LIMIT))
    with Server(demo) as server, browser(server.url) as (page, _):
        show_images(page)
        photograph(page, folder / "find_images.png")
        show_captions(page)
        photograph(page, folder / "find_captions.png")
        show_names(page)
        photograph(page, folder / "name_it.png")


if __name__ == "__main__":
    main()

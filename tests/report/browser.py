"""A browser without a network, for pages that must open from a file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MILLISECONDS = 60_000


@dataclass(frozen=True)
class Opened:
    """What a browser saw of a page."""

    text: str
    canvases: int
    """Figures that were drawn."""
    complaints: tuple[str, ...]
    """Errors and warnings of its console."""
    requests: tuple[str, ...]
    """Beside the file itself."""


def opened(path: Path, figures: int, width: int = 1280) -> Opened:
    """Open a file with the network off, and wait until its figures are drawn."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    complaints: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
        page = context.new_page()
        page.on(
            "console",
            lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        drawn = f"document.querySelectorAll('.figure').length === {figures} && [...document." + (
            "querySelectorAll('.figure > div')].every(f => f.children.length > 0)"
        )
        page.wait_for_function(drawn, timeout=WAIT_MILLISECONDS)
        canvases = page.locator("canvas").count()  # looks into the shadow trees of Bokeh too
        text = page.inner_text("body")
        context.close()
        browser.close()
    outside = tuple(url for url in requests if url != path.as_uri())
    return Opened(text, canvases, tuple(complaints), outside)

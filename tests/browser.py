"""Pages in a real browser."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


@contextlib.contextmanager
def shown(path: Path, ready: str = "body[data-ready=yes]") -> Iterator[Any]:
    """Opens a self-contained page and yields it once it has `ready`; at the end, no script has failed and nothing was loaded."""
    from playwright.sync_api import sync_playwright

    complaints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)  # 30 s, the default, have passed before a busy machine had opened the page
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.locator(ready).first.wait_for()
        yield page
        browser.close()
    assert complaints == []

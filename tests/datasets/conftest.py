"""What tests of data sets share: a browser to look at pages with, where there is one, and a disk that keeps up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window, as Debian's or another system's packages install it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = next((path for path in paths if path), None)
    if path is None:
        pytest.skip("There is no Chromium to look at the gallery with.")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests crash no machine: whether what was written has reached the disk makes no difference to them."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

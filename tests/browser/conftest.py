"""Tests that need a real Chromium: `make dashboard-test`. Collected when named. The last line is what they found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
FOUND: dict[str, Any] = {"passed": 0, "axe_serious": 0, "console_errors": 0, "load_ms_10m": None}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    FOUND["passed"] += report.when == "call" and report.passed


def pytest_unconfigure() -> None:
    print(json.dumps(FOUND), flush=True)


@pytest.fixture(scope="session")
def found() -> dict[str, Any]:
    """What is told at the end, for tests to add to."""
    return FOUND


@pytest.fixture(scope="session")
def chromium():
    """This machine's browser, which reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    name = next(filter(None, map(shutil.which, BROWSERS)), None)
    if name is None:
        pytest.exit(f"no browser: install one of {', '.join(BROWSERS)}", returncode=2)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=name, args=ARGUMENTS)
        yield started
        started.close()

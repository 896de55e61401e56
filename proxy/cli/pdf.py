"""A page as PDF, by a browser of this machine. The one place outside the demo that starts a process.

It is a command's, never a server's, and nothing that a client sent chooses what is run: the program has one of three
names, its arguments are constants, and the page (which holds names that clients chose, escaped) has a policy that lets
it run and fetch nothing. The browser gets a folder of its own, knows nobody's profile and resolves no host name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_S = 60
MISSING = (f"--format pdf needs a browser on PATH ({', '.join(BROWSERS)}); install one (Debian: apt install chromium), "
           "or take --format html and print it")
FLAGS = ("--headless", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--no-first-run",
         "--no-default-browser-check", "--no-pdf-header-footer", "--host-resolver-rules=MAP * ~NOTFOUND")


def to_pdf(html: str) -> bytes:
    """ValueError where there is no browser, or none that prints, with a word on what to do."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ValueError(MISSING)
    with tempfile.TemporaryDirectory(prefix="breakeven-", ignore_cleanup_errors=True) as folder:
        page, pdf = Path(folder, "report.html"), Path(folder, "report.pdf")
        page.write_text(html, encoding="utf-8")
        # Its sandbox refuses to run as root, which a container often is; the page has no script to be kept in.
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        try:
            done = subprocess.run(  # noqa: S603 (see above: nothing in it comes from outside)
                [browser, *FLAGS, *sandbox, f"--user-data-dir={folder}/profile", f"--print-to-pdf={pdf}",
                 page.as_uri()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=BROWSER_S,
                check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{browser} did not print within {BROWSER_S} s; take --format html and print it") from None
        except OSError as error:
            raise ValueError(f"{browser}: {error.strerror or error}") from None
        if done.returncode or not pdf.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError(f"{browser} printed nothing: {said[-1] if said else f'it ended with {done.returncode}'}; "
                             "take --format html and print it")
        return pdf.read_bytes()

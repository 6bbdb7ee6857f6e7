"""A browser, and servers to wait for."""

import shutil
import time
from urllib.error import URLError
from urllib.request import urlopen

from tests.debian import install


def browser() -> str | None:
    """Chromium, installed with its driver where that is possible (root on Debian)."""
    install(("chromium", "chromedriver"), ("--no-install-recommends", "chromium", "chromium-driver"))
    return shutil.which("chromium")


def wait_for(url: str, text: str, seconds: float = 90.0) -> None:
    """Until a server's answer has a text in it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urlopen(url, timeout=5) as answer:
                if text in answer.read().decode():
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{url} does not have {text} after {seconds} s")

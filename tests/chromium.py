"""A browser, and servers to wait for."""

import os
import shutil
import subprocess
import time
from urllib.error import URLError
from urllib.request import urlopen


def browser() -> str | None:
    """Chromium, installed with its driver where that is possible (root on Debian)."""
    if (
        None in map(shutil.which, ("chromium", "chromedriver"))
        and shutil.which("apt-get") is not None
        and os.geteuid() == 0
    ):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver"]
        for command in (["update", "-qq"], install):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=600, check=False)
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

"""Downloads of torchvision's sets that end in time, with or without the files."""

import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from odenet_lightning.data.datasets import RELATIVES, Relative

CONNECT_TIMEOUT = 4.0  # seconds to reach a mirror
READ_TIMEOUT = 30.0  # seconds without a byte while downloading


@contextmanager
def socket_timeout(seconds: float) -> Any:
    """Torchvision's downloads have no timeout of their own; Python's default for new sockets serves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reachable(mirrors: Sequence[str], timeout: float = CONNECT_TIMEOUT) -> bool:
    """Whether any mirror answers in time. In threads, since a name look-up knows no timeout."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
                answers.put(True)
        except urllib.error.HTTPError:  # it answers, if only to refuse a listing of the folder
            answers.put(True)
        except OSError:
            answers.put(False)

    for url in mirrors:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    end = time.monotonic() + timeout + 1.0
    try:
        return any(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in mirrors)
    except queue.Empty:
        return False


def is_complete(relative: Relative, root: Path, train: bool) -> bool:
    """Whether a part's files are there; whether they can be read is found on loading."""
    try:
        relative.open(str(root), train=train, download=False)
    except Exception as e:  # torchvision raises many kinds for files that are there and broken
        return "not found" not in str(e)
    return True


def download(name: str, root: Path) -> str | None:
    """Have torchvision download what is missing of a set; returns None, or why it could not."""
    relative = RELATIVES[name]
    if all(is_complete(relative, root, train) for train in (True, False)):
        return None
    if not reachable(relative.mirrors):
        return "no mirror could be reached"
    try:
        with socket_timeout(READ_TIMEOUT):
            for train in (True, False):
                relative.open(str(root), train=train, download=True)
    except (OSError, RuntimeError) as e:
        return f"the download failed ({str(e).splitlines()[0]})"
    return None

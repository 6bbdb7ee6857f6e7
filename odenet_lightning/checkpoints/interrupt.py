"""Ctrl-C while training: the first one lets the step end, the second ends the process at once."""

import signal
import sys
import threading
from typing import Any

interrupted = threading.Event()  # set by the first Ctrl-C


class InterruptWatch:
    """Notes the first Ctrl-C from `start` to `stop` instead of raising KeyboardInterrupt.

    Only the main thread can watch; elsewhere both do nothing.
    """

    def __init__(self) -> None:
        self.previous: Any = None

    def start(self) -> None:
        """Install the handler."""
        interrupted.clear()
        # a process in a shell's background ignores Ctrl-C, and must continue to
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self.previous = signal.signal(signal.SIGINT, self._note)

    def stop(self) -> None:
        """Put the earlier handler back, unless the process is to end."""
        if self.previous is not None and not interrupted.is_set():
            signal.signal(signal.SIGINT, self.previous)
        self.previous = None

    @staticmethod
    def _note(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        interrupted.set()
        print("\nCtrl-C: the run ends after this step; again to end it at once, unsaved", file=sys.stderr, flush=True)

"""python -m odenet_lightning"""

import gc
import signal
import sys

if __name__ == "__main__":
    # imports take seconds: until they are done, Ctrl-C ends them without a traceback, and a terminal says what is on
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdout.isatty():
        print("loading PyTorch and Lightning ...", end="\r", flush=True)
    from odenet_lightning.cli import main

    if sys.stdout.isatty():
        print("\033[K", end="", flush=True)
    signal.signal(signal.SIGINT, handler)
    gc.freeze()  # what was imported stays to the end: going through it for garbage costs a second on the way out
    main()

"""python -m odenet_lightning"""

import gc

from odenet_lightning.cli import main

if __name__ == "__main__":
    gc.freeze()  # what was imported stays to the end: going through it for garbage costs a second on the way out
    main()

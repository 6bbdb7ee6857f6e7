"""python -m odenet_lightning"""

from odenet_lightning.cli import main

if __name__ == "__main__":
    main()

"""python -m odenet_lightning.benchmarks.processes --root DIR: two processes against one with two threads.

The built-in recipe with 256 images a step, as two processes of one thread with 128 images each and as one
process of two threads; in turn, each in processes of its own. Prints images per second, without the first steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WARM_UP = 20  # steps that do not count


def images_per_second(root: str, processes: int, threads: int, batch_size: int, steps: int) -> float:
    """The median over a short run's records."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["fit", "--data.source", "mnist", "--data.root", os.path.abspath(root)]
        args += ["--data.batch_size", str(batch_size // processes), "--trainer.devices", str(processes)]
        args += ["--trainer.accelerator", "cpu", "--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", "10"]
        args += ["--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "odenet_lightning", *args]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        events = EventAccumulator(f"{folder}/lightning_logs/version_0").Reload()
        return statistics.median(e.value for e in events.Scalars("perf/images_per_second") if e.step >= WARM_UP)


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST/raw")
    parser.add_argument("--batch_size", type=int, default=256, help="images a step, over all processes")
    parser.add_argument("--steps", type=int, default=120, help="steps a run")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    args = parser.parse_args()
    pairs = [
        tuple(
            images_per_second(args.root, processes, 2 // processes, args.batch_size, args.steps) for processes in (2, 1)
        )
        for _ in range(args.repeats)
    ]
    two, one = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratios = [pair[0] / pair[1] for pair in pairs]
    print(f"torch {torch.__version__}, batch {args.batch_size}, n = {args.repeats} pairs of runs")
    print(f"two processes {two:.0f} images/s, one with two threads {one:.0f} images/s")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()

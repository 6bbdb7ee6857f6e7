"""SLURM: preemption by SIGUSR1, and putting the job back into the queue."""

import os
import signal
import subprocess
import threading

preempted = threading.Event()  # set by SIGUSR1 under SLURM


def in_slurm() -> bool:
    """Whether srun has started this process."""
    return "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ


def watch_for_preemption() -> None:
    """Note SIGUSR1, from the first moment on and before Lightning would take it."""
    if in_slurm():
        signal.signal(signal.SIGUSR1, lambda *_: preempted.set())


def is_requeued() -> bool:
    """Whether this SLURM job has run before."""
    return in_slurm() and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def requeue() -> bool:
    """Put this SLURM job back into the queue; returns whether that went well."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except OSError:
        return False

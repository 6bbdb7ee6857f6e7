"""A real SLURM of one node on loopback: Debian's packages slurm-wlm and munge, started for a test and stopped after."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.debian import install

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def available() -> str:
    """Why SLURM cannot be started here, or nothing. Installs it where that is possible."""
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    install(("slurmctld", "slurmd", "munged", "sbatch"), ("slurm-wlm", "munge"))
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    return f"no {', '.join(missing)}" if missing else ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(what: str, seconds: float, *args: str) -> str:
    """Repeat a command until its output contains a text; returns the output."""
    end = time.monotonic() + seconds
    output = ""
    while time.monotonic() < end:
        output = subprocess.run(args, capture_output=True, text=True, check=False).stdout
        if what in output:
            return output
        time.sleep(0.5)
    raise TimeoutError(f"no {what!r} in {seconds:.0f} s from {' '.join(args)}: {output[-1_000:]}")


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """SLURM's daemons, as long as the context lasts; `SLURM_CONF` points to them."""
    host = socket.gethostname().split(".")[0]
    text = CONFIG.format(host=host, folder=folder, controller=free_port(), daemon=free_port())
    (folder / "slurm.conf").write_text(text)
    for name in ("spool", "state"):
        (folder / name).mkdir()
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*args: str) -> None:
        processes.append(subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            start("runuser", "-u", "munge", "--", "munged", "--foreground", "--force")
            wait_for("MUNGE:", 20, "munge", "-n")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        wait_for("idle", 60, "sinfo", "-h", "-o", "%T")
        yield
    finally:
        subprocess.run(["scancel", "--full", "--user", "root"], capture_output=True, check=False)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        time.sleep(2)
        for process in processes:
            process.kill()
            process.wait()
        del os.environ["SLURM_CONF"]

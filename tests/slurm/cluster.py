"""A real Slurm cluster of two nodes on this machine: python tests/slurm/cluster.py COMMAND runs a command on it.

munged, slurmctld and one slurmd a node run as root, on free ports, with all their files in one temporary folder, and
end with the cluster. Where the programs are missing, root gets them from Debian (slurm-wlm and munge). A requeued job
waits for `cred_expire` seconds, two minutes by default: its nodes refuse it until its old credential expires.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

NODES = ("node0", "node1")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here, or ""; installs what is missing if it can."""
    if os.geteuid() != 0:
        return "the daemons of Slurm start as root only"
    if all(shutil.which(program, path=SYSTEM_PATH) for program in PROGRAMS):
        return ""
    if not shutil.which("apt-get"):
        return "Slurm is not installed, and there is no apt-get"
    install = "apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["sh", "-c", install], env=environment, capture_output=True, text=True)
    return f"slurm-wlm and munge cannot be installed: {done.stderr[-500:]}" if done.returncode else ""


class Cluster:
    """A running cluster, as a context.

    Attributes:
        folder: of configuration and logs.
        environment: by which Slurm's programs find it.
    """

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = {**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(host=host, folder=self.folder, ports=free_ports(3), nodes=NODES)
        (self.folder / "slurm.conf").write_text(text)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        try:
            # the temporary folder belongs to everybody, which munged finds too open unless it is forced
            self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
            self._until(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            self._until(lambda: self.run("sinfo", "--noheader", "--format=%D %T").split() == ["2", "idle"])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        if self.daemons:
            self.run("scancel", "--user=root", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if kind is None and "KEEP_SLURM" not in os.environ:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Return the output of a program on the login node of the cluster."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _start(self, program: str, *arguments: str) -> None:
        with open(self.folder / f"{program}.out", "ab") as log:
            path = shutil.which(program, path=SYSTEM_PATH)
            assert path, program
            self.daemons.append(
                subprocess.Popen([path, *arguments], env=self.environment, stdout=log, stderr=log, cwd=self.folder)
            )

    def _until(self, ready, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if ready():
                    return
                problem = ""
            except RuntimeError as error:
                problem = str(error)
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                logs = "".join(f"\n{p.name}:\n{p.read_text()[-2000:]}" for p in self.folder.glob("*.out"))
                raise RuntimeError(f"the cluster does not start: {problem}{logs}")
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Return different ports on which no program listens."""
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with Cluster() as cluster:
        sys.exit(subprocess.run(sys.argv[1:], env=cluster.environment).returncode)

"""Hosts made of namespaces of this machine: each has its own address, processes, /tmp, /dev/shm and
home, and an SSH server. A desk beside them, where the user sits, has the key to all.

All of it lies in one outer namespace of processes, mounts and network, whose first process ends
when the test's end of a pipe is closed: so nothing is left, whatever ends the test.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.213.77"
DESK = "desk"
START_S = 60.0
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

OUTER = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/sshd /run/tmp
mount --rbind /tmp /run/tmp
ip link add hosts type bridge
ip link set hosts up
i=0
for host in $HOSTS; do
  i=$((i + 1))
  ip netns add $host
  ip link add to-$host type veth peer name eth0 netns $host
  ip link set to-$host master hosts up
  ip -n $host address add $NETWORK.$i/24 dev eth0
  ip -n $host link set lo up
  ip -n $host link set eth0 up
  # Ray takes the address that leads out for the host's own.
  ip -n $host route add default via $NETWORK.254
  ip netns exec $host unshare --mount --pid --uts --fork --kill-child --mount-proc \
    bash "$FOLDER/inner.sh" $host </dev/null &
done
read -r _ || true
"""

INNER = """
set -e
home=$FOLDER/$1
hostname $1
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
for path in $KEPT; do
  mkdir -p $path
  mount --rbind /run/$path $path
done
mount --bind $home/passwd /etc/passwd
if [ $1 = desk ]; then exec -a $home sleep infinity; fi
exec /usr/sbin/sshd -D -e -f $home/sshd_config 2>$home/sshd.log
"""


def missing() -> str:
    """What this machine lacks for such hosts, in words; empty: nothing."""
    if os.geteuid() != 0:
        return "only root may make namespaces"
    for program in ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(
        [*UNSHARE, "ip", "link", "add", "try", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return tried.stderr.strip()


@dataclass(frozen=True)
class Hosts:
    """Running hosts.

    Attributes:
        addresses: by name.
        key: the SSH key that opens each of them, on the desk.
        homes: of root, by name, the desk's included.
        desk: a process id there.
        namespaces: identities of all their namespaces.
    """

    addresses: dict[str, str]
    key: Path
    homes: dict[str, Path]
    desk: int
    namespaces: frozenset[str]

    def on_desk(
        self, command: Sequence[str | Path], folder: Path, env: Mapping[str, str]
    ) -> list[str]:
        """The command line that runs a command at the desk, in a folder."""
        variables = {"HOME": str(self.homes[DESK]), "TERM": "dumb", "LANG": "C.UTF-8", **env}
        return [
            *("nsenter", "--target", str(self.desk), "--net", "--mount", "--pid", "--uts"),
            *("env", "--ignore-environment", *(f"{k}={v}" for k, v in variables.items())),
            *("sh", "-c", 'cd "$0" && exec "$@"', str(folder), *map(str, command)),
        ]


@contextmanager
def hosts(names: Sequence[str], folder: Path, kept: Sequence[Path]) -> Iterator[Hosts]:
    """Hosts up inside the block.

    Args:
        names: of the hosts; also their host names.
        folder: empty; takes their homes.
        kept: folders below /tmp that they share with this machine, as with a file server.
    """
    homes = {name: folder / name for name in (*names, DESK)}
    key = homes[DESK] / ".ssh" / "id_ed25519"
    for name, home in homes.items():
        _furnish(name, home)
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
    subprocess.run([*keygen, "-f", key], check=True)
    for name in names:
        subprocess.run([*keygen, "-f", homes[name] / "host_key"], check=True)
        shutil.copy(key.with_suffix(".pub"), homes[name] / ".ssh" / "authorized_keys")
    (folder / "inner.sh").write_text(INNER)
    below_tmp = [path for path in (*kept, folder) if path.is_relative_to("/tmp")]
    process = subprocess.Popen(
        [*UNSHARE, "bash", "-c", OUTER],
        stdin=subprocess.PIPE,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTS": " ".join(homes),
            "FOLDER": str(folder),
            "NETWORK": NETWORK,
            "KEPT": " ".join(map(str, below_tmp)),
        },
    )
    try:
        desk = _wait_for(homes, names, process)
        yield Hosts(
            addresses={name: f"{NETWORK}.{i}" for i, name in enumerate(names, start=1)},
            key=key,
            homes=homes,
            desk=desk,
            namespaces=_of_all(process.pid),
        )
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=START_S)


def _furnish(name: str, home: Path) -> None:
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh").chmod(0o700)
    home.chmod(0o755)
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    for user in users:
        if user[0] == "root":
            user[5:] = [str(home), "/bin/bash"]
    (home / "passwd").write_text("".join(":".join(user) + "\n" for user in users))
    # As Debian's own, so that what is added to .bashrc is read in a login shell as well.
    (home / ".profile").write_text(". ~/.bashrc\n")
    (home / ".bashrc").touch()
    if name != DESK:
        settings = [
            f"HostKey {home}/host_key",
            "PermitRootLogin prohibit-password",
            "UsePAM no",
            "StrictModes no",
            "PidFile none",
            "Subsystem sftp internal-sftp",
        ]
        (home / "sshd_config").write_text("\n".join(settings) + "\n")


def _wait_for(homes: Mapping[str, Path], names: Sequence[str], process: subprocess.Popen) -> int:
    """Until every server listens; a process id at the desk."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        logs = [homes[name] / "sshd.log" for name in names]
        desks = processes_with(f"{homes[DESK]}\0infinity\0")
        if desks and all(log.is_file() and "listening" in log.read_text() for log in logs):
            return desks[0]
        time.sleep(0.05)
    raise RuntimeError(f"the hosts do not start: {process.poll()}")


def processes_with(words: str) -> list[int]:
    """Process ids of the commands whose line, words ended by NUL, begins with these."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(words.encode()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


KINDS = ("net", "mnt", "pid")


def living_in(namespaces: frozenset[str]) -> list[int]:
    """Process ids in one of these namespaces."""
    return [pid for pid in _pids() if namespaces & _namespaces(pid)]


def _of_all(unshare: int) -> frozenset[str]:
    """The namespaces of all processes below this one that are not this test's own."""
    parents = {pid: _parent(pid) for pid in _pids()}
    below = {unshare}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return frozenset().union(*map(_namespaces, below)) - _namespaces(os.getpid())


def _pids() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _namespaces(pid: int) -> frozenset[str]:
    try:
        return frozenset(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS)
    except OSError:
        return frozenset()

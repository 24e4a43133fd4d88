"""A room with few doors: the bubblewrap command line that jobs and sessions run in.

The room starts empty. What a program needs to run (the system's programs and libraries, Python, this
software) is put in read-only, `/tmp` is private and in memory, and of the data only what the caller names is
there. Processes inside see no others, have no privileges, and no network unless it is asked for.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt")
# in /etc, and readable by the account that the service runs under when that is root, or by everybody
SECRETS = (
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/beamhub",
    "/etc/jupyterhub",
)
WALLS = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL"),
)
PACKAGES = ("beamhub", "beamhub_hub", "beamhub_spawners", "beamhub_notebooks", "beamhub_cockpit")
MEMORY = ("/tmp", "/dev/shm")  # noqa: S108 (private folders, in memory)
MEMORY_SIZE = 2 * 1024**3  # bytes of each
TEMPORARY = ".tmp"  # instead of these, where there is no sandbox


def command(
    argv: Sequence[str],
    *,
    read_write: Iterable[Path] = (),
    read_only: Iterable[Path] = (),
    hide: Iterable[Path] = (),
    network: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """The command that runs `argv` in a sandbox of its own.

    Every path appears inside under its own absolute name; of two paths, the deeper one decides, so a writable
    folder may lie in a read-only one, and a hidden one in both. The whole sandbox dies with its first
    process, and with SIGKILL to the process group of the command.

    Args:
        argv: program and arguments, found by the PATH inside.
        read_write: folders the program may change.
        read_only: folders and files it may read.
        hide: folders (appear empty) and files (appear empty) it may not see although they lie in one of the
            others.
        network: True shares the host's network; False leaves a loopback interface that nobody else is on.
        cwd: working directory, `/tmp` by default.
        env: the whole environment inside. It is visible to everybody in the host's process list: to hand over
            a secret, leave it out and start the command with the wanted environment; the sandbox passes that
            on.

    Raises:
        ValueError: one of the paths is not absolute.
    """
    hidden = [path for path in (*map(Path, SECRETS), *hide) if path.exists()]
    line = ["bwrap", *WALLS, *([] if network else ["--unshare-net"]), *_system()]
    line += _doors(read_only, read_write, hidden, network=network)
    for path in (Path("/"), *hidden):
        if path.is_dir():
            line += ["--remount-ro", str(path)]
    line += ["--chdir", str(cwd or "/tmp")]  # noqa: S108
    if env is not None:
        line += ["--clearenv"]
        for name, value in env.items():
            line += ["--setenv", name, value]
    return [*line, "--", *argv]


def _system() -> list[str]:
    """What is in every sandbox: the system's programs and libraries, and private folders."""
    line: list[str] = []
    for name in SYSTEM:
        path = Path(name)
        if path.is_symlink():
            line += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            line += ["--ro-bind", name, name]
    line += ["--dev", "/dev", "--proc", "/proc"]
    for name in MEMORY:
        line += ["--size", str(MEMORY_SIZE), "--tmpfs", name]
    return line


def _doors(
    read_only: Iterable[Path], read_write: Iterable[Path], hidden: Iterable[Path], *, network: bool
) -> list[str]:
    """What else is seen of the machine. The deeper paths come later: they decide."""
    doors: dict[Path, list[str]] = {}
    resolver = [Path("/etc/resolv.conf").resolve()] if network else []  # often a link to a file below /run
    for path in (*software(), *resolver, *read_only):
        doors[path] = ["--ro-bind", str(path), str(path)]
    for path in read_write:
        doors[path] = ["--bind", str(path), str(path)]
    for path in hidden:
        doors[path] = ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
    line: list[str] = []
    for path in sorted(doors, key=lambda path: len(path.parts)):
        if not path.is_absolute():
            raise ValueError(f"a sandbox takes absolute paths, not {path}")
        line += doors[path]
    return line


def without(folder: Path) -> dict[str, str]:
    """What a program that has to do without a sandbox gets instead of a private `/tmp`, as variables of its
    environment: its home and its temporary files are in its `folder`, so that they go with it."""
    temporary = folder / TEMPORARY
    temporary.mkdir(mode=0o700, exist_ok=True)
    return {"HOME": str(folder), "TMPDIR": str(temporary)}


@cache
def software() -> tuple[Path, ...]:
    """The folders that this Python and the packages of beamhub live in, beyond the system's own."""
    found = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            found.update(map(Path, spec.submodule_search_locations or ()))
    found |= {path.resolve() for path in found}
    system = [Path(name) for name in SYSTEM]
    return tuple(
        sorted(
            path
            for path in found
            if not any(path.is_relative_to(other) for other in (*system, *(found - {path})))
        )
    )


@cache
def works() -> str:
    """ "" if sandboxes can be made on this machine, else the reason why not and what to do about it."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed: install your system's package 'bubblewrap'"
    trial = subprocess.run(
        command(["true"]), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20, check=False
    )
    if trial.returncode == 0:
        return ""
    return (
        f"bubblewrap cannot make a sandbox here ({trial.stderr.strip() or f'exit code {trial.returncode}'}): "
        "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container, profiles of seccomp and AppArmor "
        "that permit them)"
    )

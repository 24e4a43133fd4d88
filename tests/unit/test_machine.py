"""What stands in the way of a start is one sentence that says what to do."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from beamhub import ports
from beamhub.ports import free_ports
from beamhub_hub import machine, proxy
from beamhub_hub.credentials import Credentials
from beamhub_hub.demo import _clear
from beamhub_hub.doctor import doctor
from click.testing import CliRunner


def test_nothing_stands_in_the_way_here(tmp_path: Path) -> None:
    [port] = free_ports(1)
    assert machine.obstacle(machine.python(), machine.folder(tmp_path / "state"), machine.port(port)) == ""


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        obstacle = machine.obstacle(machine.port(port))
    assert f"port {port} can't be used" in obstacle
    assert "--port" in obstacle


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FREE", 1 << 60)
    assert "GB of disk are free" in machine.obstacle(machine.folder(tmp_path))


def test_a_state_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "can't be written to" in machine.obstacle(machine.folder(tmp_path / "file" / "state"))


CLAIMS = """
import sys
from beamhub import ports
ports._PORTS = range(int(sys.argv[1]), int(sys.argv[1]) + 10)
print(*ports.free_ports(4), flush=True)
input()
"""


def test_no_other_process_is_told_a_free_port_again(monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = ports.free_ports(1)
    monkeypatch.setattr(ports, "_PORTS", range(first, first + 10))
    mine = ports.free_ports(3)
    with subprocess.Popen(
        [sys.executable, "-c", CLAIMS, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        theirs = [int(port) for port in other.stdout.readline().split()]
        other.communicate("\n")
    assert len({first, *mine, *theirs}) == 8


def test_no_network_for_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_folders", lambda name: [tmp_path / "proxies" / name])
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(proxy.ProxyMissing, match="can't be reached"):
        proxy.install()
    assert list((tmp_path / "proxies").iterdir()) == []  # nothing half installed


def test_of_two_starts_at_once_one_installs_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "proxies" / "proxy"
    folder.parent.mkdir()
    monkeypatch.setattr(proxy, "_folders", lambda name: [folder])
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    first = os.open(folder.parent, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(proxy.install)
        while f"-> FLOCK  ADVISORY  WRITE {os.getpid()} " not in Path("/proc/locks").read_text():
            assert not second.done()
        (folder / proxy.PROGRAM).parent.mkdir(parents=True)
        (folder / proxy.PROGRAM).touch()
        os.close(first)
        assert second.result()[1] == str(folder / proxy.PROGRAM)


def test_the_proxy_is_there_once_it_has_been_installed() -> None:
    node, program = proxy.install()
    assert Path(node).is_file()
    assert Path(program).is_file()
    assert proxy.install() == [node, program]


def test_the_doctor_tells_people_and_programs(tmp_path: Path) -> None:
    [port] = free_ports(1)
    options = [f"--port={port}", f"--state={tmp_path}"]
    told = CliRunner().invoke(doctor, options)
    assert told.exit_code == 0, told.output
    assert "sandbox" in told.output
    found = json.loads(CliRunner().invoke(doctor, [*options, "--json"]).output)
    assert {"name": "port", "fine": True, "message": f"{port} is free", "needed": True} in found


def test_the_doctor_fails_where_something_needed_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = CliRunner().invoke(doctor, [f"--state={tmp_path / 'file'}"])
    assert told.exit_code == 1


def test_fresh_removes_a_demo_although_its_ended_jobs_are_read_only(tmp_path: Path) -> None:
    Credentials.of(tmp_path, "http://127.0.0.1:8000").save(tmp_path)
    (tmp_path / "lock").touch()
    job = tmp_path / "data" / "e" / "processed" / "1"
    job.mkdir(parents=True)
    (job / "result.json").touch(0o444)
    job.chmod(0o555)
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir(mode=0o555)
    (job.parent / "link").symlink_to(elsewhere)
    _clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert elsewhere.stat().st_mode & 0o777 == 0o555


def test_fresh_removes_nothing_that_isnt_a_demos(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(click.ClickException, match="is not a demo's folder"):
        _clear(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"

"""The whole facility behind a real hub: signing in, acting as oneself everywhere, and sessions in their
sandboxes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from beamhub.folders import PROCESSED
from beamhub.run import READY
from beamhub.runners.pool import SLOTS
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import ExperimentChange, ExperimentState, JobState, Role
from beamhub_hub.processes import MARK
from beamhub_hub.site import Secrets, Site
from beamhub_hub.testing import RunningDemo
from websockets.sync.client import connect

pytestmark = pytest.mark.timeout(600)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def marked(state: Path) -> dict[int, str]:
    """The command lines of all processes that belong to a demo, by number."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if f"{MARK}={state}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def cockpit_token(demo: RunningDemo, browser: httpx.Client) -> str:
    """The token that the Cockpit gets for the person who has signed in with this browser."""
    client = {"client_id": "service-cockpit", "redirect_uri": "/services/cockpit/oauth_callback"}
    allowed = browser.get(
        "/hub/api/oauth2/authorize", params={**client, "response_type": "code"}, follow_redirects=False
    )
    code = httpx.URL(allowed.headers["location"]).params["code"]
    secret = json.loads((demo.state / "secrets.json").read_text())["cockpit"]
    answer = httpx.post(
        f"{demo.url}/hub/api/oauth2/token",
        data={**client, "client_secret": secret, "grant_type": "authorization_code", "code": code},
    )
    return str(answer.raise_for_status().json()["access_token"])


# --- signing in
# -------------------------------------------------------------------------------------------------


def test_after_signing_in_one_is_in_the_cockpit(demo: RunningDemo) -> None:
    with demo.browser("ben") as browser:
        page = browser.get("/")
        assert page.status_code == 200
        assert page.url.path == "/services/cockpit/voila/render/cockpit.ipynb"


def test_a_wrong_password_gets_nobody_in(demo: RunningDemo) -> None:
    with httpx.Client(base_url=demo.url) as browser:
        browser.get("/hub/login")
        form = {
            "username": "ben",
            "password": "guessed-it",
            "_xsrf": browser.cookies.get("_xsrf", path="/hub/") or "",
        }
        assert browser.post("/hub/login", data=form).status_code == 403
        assert browser.get("/hub/signup").status_code == 404


def test_the_hubs_own_pages(demo: RunningDemo) -> None:
    with demo.browser("ben") as browser:
        for path, title in (("home", "Sessions"), ("token", "Tokens"), ("change-password", "Password")):
            page = browser.get(f"/hub/{path}")
            assert page.status_code == 200
            assert f"<title>{title} · beamhub</title>" in " ".join(page.text.split()).replace(
                "> ", ">"
            ).replace(" <", "<")


@pytest.mark.parametrize(
    ("path", "status", "heading"),
    [
        ("/hub/nothing", 404, "There is no such page"),
        ("/hub/admin", 403, "You may not open this"),
        ("/hub/error/503", 200, "No answer just now"),  # what the proxy shows where nobody answers
        ("/user/ben/lab", 424, "Which experiment's JupyterLab?"),
    ],
)
def test_a_page_that_cannot_be_had_says_what_to_do(
    demo: RunningDemo, path: str, status: int, heading: str
) -> None:
    with demo.browser("ben") as browser:
        page = browser.get(path)
    assert page.status_code == status
    assert f"<h1>{heading}</h1>" in page.text
    assert "To the Cockpit" in page.text


def test_browser_and_token_act_as_their_user_in_the_service(demo: RunningDemo) -> None:
    client = demo.client("ben")
    with demo.browser("ben") as browser:
        # a link that is opened takes the browser through the hub; from then on it has the service's cookie
        me = "/services/beamhub/api/v1/me"
        assert browser.get(me, headers={"Accept": "text/html"}).json()["name"] == "ben"
        assert browser.get(me).json()["name"] == "ben"
        assert client.me().name == "ben"
        assert not client.me().operator


def test_the_cockpits_token_is_good_for_the_service_and_little_else(demo: RunningDemo) -> None:
    with demo.browser("ben") as browser:
        token = cockpit_token(demo, browser)
    with httpx.Client(base_url=demo.url, headers={"Authorization": f"token {token}"}) as holder:
        assert holder.get("/services/beamhub/api/v1/me").json()["name"] == "ben"
        assert holder.get("/hub/api/users").status_code == 403
        assert holder.post("/hub/api/users/ben/servers/x").status_code == 403
        assert holder.post("/hub/api/users/ben/tokens").status_code == 403


def ingest_process(demo: RunningDemo) -> int | None:
    """The process that takes the demo's uploads."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().split(b"\0")
            if f"{MARK}={demo.state}".encode() in variables and any(
                b"config/ingest.py" in c for c in command
            ):
                return int(process.name)
    return None


def test_uploads_have_a_process_of_their_own(demo: RunningDemo) -> None:
    """The proxy leads there, everybody is known there as in the service, and the hub keeps it alive."""
    site = Site.model_validate_json((demo.state / "site.json").read_text())
    proxy = {"Authorization": f"token {Secrets.of(demo.state).proxy}"}
    table = httpx.get(f"http://127.0.0.1:{site.proxy_port}/api/routes", headers=proxy).json()
    assert table["/services/beamhub/api/v1/uploads"]["target"] == site.ingest_url

    path = f"/services/beamhub/api/v1/uploads?experiment={demo.credentials.experiment}"
    ben = {"Authorization": f"token {demo.credentials.users['ben'].token}"}
    eve = {"Authorization": f"token {demo.credentials.users['eve'].token}"}
    for place in (demo.url, site.ingest_url):
        assert httpx.get(f"{place}{path}", headers=ben).status_code == 200
        assert httpx.get(f"{place}{path}", headers=eve).status_code == 404
        assert httpx.get(f"{place}{path}").status_code == 401
    with demo.browser("ben") as browser:
        browser.get("/services/beamhub/api/v1/me", headers={"Accept": "text/html"})
        assert browser.get(path).status_code == 200  # the service's cookie

    first = ingest_process(demo)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: ingest_process(demo) not in (None, first))
    assert demo.client("ben").me().name == "ben"  # the service goes on meanwhile
    until(lambda: httpx.get(f"{demo.url}{path}", headers=ben).status_code == 200)


def test_a_browser_uploads_through_it(demo: RunningDemo) -> None:
    """With its cookie, and so with the XSRF token that the service gave it."""
    content = b"seen at 3.5 \xc3\x85"
    with demo.browser("ben") as browser:
        browser.get("/services/beamhub/api/v1/me", headers={"Accept": "text/html"})
        values = {
            "filename": "note.txt",
            "sha256": hashlib.sha256(content).hexdigest(),
            "experiment": demo.credentials.experiment,
        }
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Upload-Metadata": ",".join(f"{k} {b64encode(v.encode()).decode()}" for k, v in values.items()),
        }
        forged = browser.post("/services/beamhub/api/v1/uploads", headers=headers)
        assert forged.status_code in (401, 403)
        xsrf = browser.cookies.get("_xsrf", path="/services/beamhub/") or ""
        headers["X-XSRFToken"] = xsrf
        answer = browser.post("/services/beamhub/api/v1/uploads", headers=headers)
        assert answer.status_code == 201, answer.text
        body = {**headers, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        assert browser.patch(answer.headers["Location"], headers=body, content=content).status_code == 204
    assert demo.client("ada").file(demo.credentials.experiment, "shared/note.txt") == content


def test_credentials_are_for_their_owner_only(demo: RunningDemo) -> None:
    for name in ("credentials.json", "secrets.json", "site.json", "agent/token"):
        assert (demo.state / name).stat().st_mode & 0o777 == 0o600
    assert demo.state.stat().st_mode & 0o777 == 0o700
    assert set(demo.credentials.users) == {"sam", "ada", "ben", "eve"}
    for account in demo.credentials.users.values():
        assert account.password in demo.output


def test_the_beamtime_is_set_up(demo: RunningDemo) -> None:
    experiment = demo.credentials.experiment
    ada, eve, sam = (demo.client(name) for name in ("ada", "eve", "sam"))
    assert ada.experiment(experiment).role == Role.PI
    assert {member.user for member in ada.members(experiment)} == {"ada", "ben"}
    assert eve.experiments() == []
    assert {rule.template for rule in sam.triggers("sim-mx")} == {"fast_feedback", "dials"}
    assert {licence.id for licence in ada.sponsors(experiment)} == {"lab-sim-mx", "user-ada"}


# --- sessions
# ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(demo: RunningDemo) -> Iterator[httpx.Client]:
    """Ben's JupyterLab session of the active experiment."""
    with demo.hub("ben") as hub:
        start_session(hub, "ben", demo.credentials.experiment)
        yield hub
        hub.delete(f"/hub/api/users/ben/servers/{demo.credentials.experiment}")


def start_session(hub: httpx.Client, user: str, experiment: str) -> None:
    server = f"/hub/api/users/{user}/servers/{experiment}"
    hub.post(server).raise_for_status()
    with hub.stream("GET", f"{server}/progress") as progress:
        last = [line for line in progress.iter_lines() if line.startswith("data:")][-1]
    assert json.loads(last.removeprefix("data:")).get("ready"), last


def run(hub: httpx.Client, base: str, code: str) -> Any:
    """What `code`, run by a kernel of the session at `base`, prints as JSON."""
    kernel = hub.post(f"{base}/api/kernels", json={"name": "python3"}).raise_for_status().json()["id"]
    address = f"{hub.base_url.copy_with(scheme='ws')}".rstrip("/") + f"{base}/api/kernels/{kernel}/channels"
    request = {
        "header": {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "",
            "session": "s",
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False},
        "channel": "shell",
    }
    printed = ""
    with connect(address, additional_headers=dict(hub.headers), proxy=None) as socket:
        socket.send(json.dumps(request))
        while True:
            message = json.loads(socket.recv(timeout=120))
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:  # type: ignore[index]
                continue
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
            if message["msg_type"] == "execute_reply":
                assert message["content"]["status"] == "ok", message["content"]
                break
    hub.delete(f"{base}/api/kernels/{kernel}").raise_for_status()
    return json.loads(printed)


LOOK = """
import json, os, sys
from pathlib import Path
from beamhub.client import Client

def attempt(function):
    try:
        return function()
    except OSError as error:
        return type(error).__name__

state, experiment = Path({state!r}), Path({experiment!r})
with Client.from_environment() as client:
    print(json.dumps({{
        "raw": (experiment / "raw" / "note.txt").read_text(),
        "write raw": attempt(lambda: (experiment / "raw" / "forged.h5").write_text("x")),
        "write processed": attempt(lambda: (experiment / "processed" / "forged").mkdir()),
        "write beside": attempt(lambda: (experiment / "forged").mkdir()),
        "write shared": attempt(lambda: (experiment / "shared" / "mine.txt").write_text("from the session")),
        "incoming": os.listdir(experiment / ".incoming"),
        "experiments": os.listdir(experiment.parent),
        "state": sorted(os.listdir(state)),
        "homes": sorted(os.listdir(state / "homes")),
        "home": attempt(lambda: Path.home().joinpath("kept").write_text("x")),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "me": client.me().name,
        "folder": os.environ["BEAMHUB_EXPERIMENT"],
    }}))
"""


def test_a_session_sees_its_experiment_and_nothing_else(demo: RunningDemo, session: httpx.Client) -> None:
    name = demo.credentials.experiment
    with demo.operator() as operator:
        other = operator.create_experiment("sim-mx", "Somebody else's", "eve")
    assert (demo.state / "data" / other.id).is_dir()
    (demo.experiment / "raw" / "note.txt").write_text("from the instrument")
    (demo.experiment / ".incoming" / "unverified").write_text("not whole yet")

    seen = run(
        session, f"/user/ben/{name}", LOOK.format(state=str(demo.state), experiment=str(demo.experiment))
    )

    (demo.experiment / ".incoming" / "unverified").unlink(missing_ok=True)  # housekeeping removes it as well
    assert seen["raw"] == "from the instrument"
    assert seen["incoming"] == []
    assert {seen["write raw"], seen["write processed"], seen["write beside"]} == {"OSError"}
    assert seen["write shared"] == len("from the session")
    assert (demo.experiment / "shared" / "mine.txt").read_text() == "from the session"
    assert seen["experiments"] == [name]
    assert seen["state"] == ["data", "homes"]
    assert seen["homes"] == ["ben"]
    assert seen["home"] == 1
    assert (demo.state / "homes" / "ben" / name / "kept").exists()
    assert seen["processes"] < 20
    assert (seen["me"], seen["folder"]) == ("ben", name)


def test_a_session_shows_the_experiments_files(demo: RunningDemo, session: httpx.Client) -> None:
    listing = session.get(f"/user/ben/{demo.credentials.experiment}/api/contents").raise_for_status().json()
    assert {"raw", "processed", "shared"} <= {entry["name"] for entry in listing["content"]}
    # where nothing is written by hand, nothing can be
    refused = session.put(
        f"/user/ben/{demo.credentials.experiment}/api/contents/raw/x.txt",
        json={"type": "file", "format": "text", "content": "x"},
    )
    assert refused.status_code in (403, 500)


def test_a_session_is_no_beamhub_service(demo: RunningDemo, session: httpx.Client) -> None:
    base = f"/user/ben/{demo.credentials.experiment}"
    assert session.get(f"{base}/api/v1/me").status_code == 404
    assert session.get(f"{base}/voila").status_code == 404


def test_others_stay_out_of_a_session(demo: RunningDemo, session: httpx.Client) -> None:
    for user in ("ada", "eve"):
        with demo.hub(user) as hub:
            assert hub.get(f"/user/ben/{demo.credentials.experiment}/api/contents").status_code == 403


@pytest.mark.parametrize(
    ("name", "sentence"), [("", "belongs to an experiment"), ("no-such-1", "You have no session")]
)
def test_a_session_needs_an_experiment(demo: RunningDemo, name: str, sentence: str) -> None:
    with demo.hub("ben") as hub:
        refused = hub.post(f"/hub/api/users/ben/servers/{name}" if name else "/hub/api/users/ben/server")
        assert refused.status_code in (403, 404)
        assert sentence in refused.text


def test_a_stranger_gets_no_session(demo: RunningDemo) -> None:
    experiment = demo.credentials.experiment
    with demo.hub("eve") as hub:
        refused = hub.post(f"/hub/api/users/eve/servers/{experiment}")
        assert refused.status_code == 403
        assert f"You have no session in {experiment}" in refused.text
    assert not (demo.state / "homes" / "eve").exists()


def test_who_leaves_the_experiment_loses_the_session(demo: RunningDemo, session: httpx.Client) -> None:
    experiment = demo.credentials.experiment
    ada = demo.client("ada")
    ada.remove_member(experiment, "ben")
    try:
        until(lambda: experiment not in session.get("/hub/api/users/ben").json()["servers"])
    finally:
        ada.add_member(experiment, "ben")
    assert not [line for line in marked(demo.state).values() if "jupyterhub.singleuser" in line]


def test_closing_an_experiment_ends_its_sessions(demo: RunningDemo, session: httpx.Client) -> None:
    experiment, instrument = demo.credentials.experiment, demo.credentials.instrument
    start_session(session, "ben", experiment)
    sam = demo.client("sam")
    sam.change_experiment(experiment, ExperimentChange(state=ExperimentState.CLOSED))
    try:
        until(lambda: experiment not in session.get("/hub/api/users/ben").json()["servers"])
        refused = session.post(f"/hub/api/users/ben/servers/{experiment}")
        assert refused.status_code == 403
        assert f"{experiment} is closed" in refused.text
    finally:
        sam.change_experiment(experiment, ExperimentChange(state=ExperimentState.PROCESSING))
        sam.activate(instrument, experiment)
    assert not [line for line in marked(demo.state).values() if "jupyterhub.singleuser" in line]


# --- starting and ending
# ----------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing_running_and_the_next_start_goes_on(
    start_demo: Callable[..., RunningDemo], tmp_path: Path
) -> None:
    first = start_demo("--no-acquisition", state=tmp_path / "state")
    before = first.credentials
    assert marked(first.state)
    assert first.end() == 0
    assert marked(first.state) == {}
    assert "Traceback" not in first.output

    second = start_demo("--no-acquisition", state=tmp_path / "state")
    assert second.credentials == before.model_copy(update={"url": second.url})
    assert [experiment.id for experiment in second.client("ada").experiments()] == [before.experiment]
    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: marked(second.state) == {})


def test_what_was_temporary_goes_although_everything_is_killed(
    start_demo: Callable[..., RunningDemo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Service, Cockpit, agent, hub and interpreters, while jobs run and a page is open."""
    machine, state = tmp_path / "tmp", tmp_path / "state"
    machine.mkdir()
    monkeypatch.setenv("TMPDIR", str(machine))

    def temporary() -> set[Path]:
        slots = state.glob(f"data/*/{PROCESSED}/{SLOTS}/*")
        return {*machine.iterdir(), *state.glob("tmp/*/*"), *state.glob("tmp/*/voila_*/*.json"), *slots}

    def look(demo: RunningDemo) -> None:
        with demo.browser("ada") as browser:
            assert browser.get("/services/cockpit/voila/render/cockpit.ipynb").status_code == 200
        until(lambda: any(state.glob(f"data/*/{PROCESSED}/{SLOTS}/*/{READY}")))

    first = start_demo("--no-acquisition", state=state)
    first.acquire("--prefix=long", "--frames=2000", "--rate=2")
    until(lambda: len(first.client("ada").jobs(state=JobState.RUNNING)) > 0)
    look(first)
    before = temporary()
    assert {path.relative_to(state).parts[0] for path in before} == {"tmp", "data"}, before
    for _ in range(2):  # the second time, what was starting
        for pid in marked(state):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL

    second = start_demo("--no-acquisition", state=state)
    ada = second.client("ada")
    for job in ada.jobs():
        ada.cancel(job.id)
        ada.wait(job.id, timeout=120)
    until(lambda: not before & temporary())  # interpreters' folders go when new ones are to wait
    look(second)
    assert not list(state.glob(f"data/*/{PROCESSED}/*/{TEMPORARY}"))
    assert second.end() == 0
    assert list(machine.iterdir()) == []


def test_two_demos_dont_share_a_folder(demo: RunningDemo) -> None:
    other = RunningDemo(demo.state)
    assert other.wait() == 1
    assert "a demo is running in" in other.output


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = RunningDemo(tmp_path / "state", f"--port={port}")
        assert other.wait() == 1
    assert f"port {port} can't be used" in other.output
    assert "Traceback" not in other.output

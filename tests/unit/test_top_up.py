"""Jobs that wait for credit: after a grant each is queued once, by however many processes, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys

from beamhub.credits import grant
from beamhub.jobstate import admit
from beamhub.schemas import JobState, LedgerKind
from beamhub.store import Store, Transaction

from tests.records import job
from tests.unit.test_accounts import found, licence

JOBS = 30
# Queues what can be paid for, as an engine does; with "die", the service is killed before it has committed.
ADMIT = """
import os, signal, sys
from beamhub import waiting
from beamhub.store import Store

url, how, *ids = sys.argv[1:]
store = Store(url)

def work(tx):
    waiting.admit_pending(tx, [tx.jobs.get(int(id_)) for id_ in ids])
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)

print("ready", flush=True)
sys.stdin.readline()
store.write_sync(work)
store.close()
"""


def admitting(store: Store, how: str, ids: list[int]) -> subprocess.Popen[str]:
    url = store._write_engine.url.render_as_string(hide_password=False)
    process = subprocess.Popen(
        [sys.executable, "-c", ADMIT, url, how, *map(str, ids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_each_waiting_job_is_queued_once_after_a_grant(store: Store) -> None:
    def prepare(tx: Transaction) -> list[int]:
        experiment = found(tx)
        licence(tx, "lab")
        made = [admit(tx, job(tx, experiment, "lab", 10)) for _ in range(JOBS)]
        assert {one.state for one in made} == {JobState.PENDING}
        assert "Waits for credit" in made[0].reason
        return [one.id for one in made]

    ids = store.write_sync(prepare)
    victim, *others = [admitting(store, how, ids) for how in ("die", "live", "live", "live")]
    store.write_sync(lambda tx: grant(tx, "lab", 10 * (JOBS - 5), actor="root"))
    victim.communicate("go\n")
    assert victim.returncode == -signal.SIGKILL
    for process in others:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in others:
        process.communicate()
        assert process.returncode == 0

    def check(tx: Transaction) -> None:
        states = [one.state for id_ in ids if (one := tx.jobs.get(id_))]
        assert states.count(JobState.QUEUED) == JOBS - 5
        assert states.count(JobState.PENDING) == 5
        lines = tx.licences.ledger("lab", after=None, limit=1000).items
        held = [line.job for line in lines if line.kind is LedgerKind.HOLD]
        assert len(held) == len(set(held)) == JOBS - 5
        assert sum(tx.attempts.count(id_) for id_ in ids) == JOBS - 5
        account = tx.licences.get("lab")
        assert account
        assert (account.held, account.available) == (10 * (JOBS - 5), 0)

    store.read_sync(check)

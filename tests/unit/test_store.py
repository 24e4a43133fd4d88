"""The store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from beamhub.errors import BeamhubError, DiskFull, Invalid, Unavailable
from beamhub.events import emit
from beamhub.schemas import Experiment, Heartbeat, InstrumentCreate, Page, Role
from beamhub.store import WRITERS_LOCK, Store, Transaction, _json
from beamhub.store.tables import metadata
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError


def instrument(id_: str = "sim-mx") -> InstrumentCreate:
    return InstrumentCreate(id=id_, title=id_, staff=["sam"])


def test_migrations_arrive_at_the_tables(store: Store) -> None:
    store.migrate()  # a second time changes nothing
    with store._read_engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrations_make_the_same_constraints_as_the_tables(tmp_path: Path, postgresql_url: str) -> None:
    """Autogeneration does not see check constraints and primary keys; the database's own view does."""

    def constraints(engine: Any) -> dict[str, Any]:
        look = inspect(engine)
        return {
            table: (
                look.get_pk_constraint(table),
                look.get_check_constraints(table),
                look.get_unique_constraints(table),
                look.get_foreign_keys(table),
                sorted(look.get_indexes(table), key=lambda index: str(index["name"])),
            )
            for table in sorted(look.get_table_names())
            if table != "alembic_version"
        }

    store = Store(postgresql_url)
    store.migrate()
    migrated = constraints(store._read_engine)
    store.close()
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
    assert migrated == constraints(engine)
    engine.dispose()


def test_digests_of_before_are_kept(tmp_path: Path) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", "beamhub.store:migrations")
    config.set_main_option("path_separator", "os")
    url = f"sqlite:///{tmp_path / 'beamhub.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO instruments (id, title, technique, staff, automation, created)"
                " VALUES ('mx', 'MX', 'MX', '[]', 1, '2026-01-01 00:00:00')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO experiments (id, instrument, title, state, pi, created)"
                " VALUES ('e', 'mx', 'L', 'running', 'ada', '2026-01-01 00:00:00')"
            )
        )
        columns = "id, experiment, path, size, digest, version, state, error, created, created_by"
        values = f"'1', 'e', 'raw/a', 1, '{'0' * 64}', 1, 'complete', '', '2026-01-01 00:00:00', 'ada'"
        connection.execute(text(f"INSERT INTO uploads ({columns}) VALUES ({values})"))
    engine.dispose()
    store = Store(url)
    store.migrate()
    upload = store.read_sync(lambda tx: tx.uploads.get("1"))
    assert upload is not None
    assert (upload.digest, upload.digest_by) == (f"sha256:{'0' * 64}", "sender")
    store.close()


def test_jobs_of_before_keep_the_number_of_their_attempts(tmp_path: Path) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", "beamhub.store:migrations")
    config.set_main_option("path_separator", "os")
    url = f"sqlite:///{tmp_path / 'beamhub.db'}"
    engine = create_engine(url)
    now = "2026-01-01 00:00:00"
    hold = {
        "licence": "l",
        "time": now,
        "kind": "hold",
        "cpu_seconds": 4,
        "job": 7,
        "actor": "ada",
        "note": "",
    }
    job = {"id": 7, "experiment": "e", "template": "t", "template_version": "v", "title": "T"}
    job |= {"state": "running", "reason": "", "parameters": "{}", "inputs": "[]", "profile": "{}", "live": 0}
    job |= {"sponsor": "l", "launched_by": "ada", "created": now, "started": now, "cpu_seconds": 3, "held": 4}
    job |= {"progress": "{}", "metrics": "{}", "artifacts": "[]"}
    rows: list[tuple[str, dict[str, Any]]] = [
        (
            "instruments",
            {"id": "mx", "title": "M", "technique": "M", "staff": "[]", "automation": 1, "created": now},
        ),
        (
            "experiments",
            {"id": "e", "instrument": "mx", "title": "L", "state": "running", "pi": "ada", "created": now},
        ),
        (
            "licences",
            {"id": "l", "title": "L", "kind": "lab", "instruments": "[]", "valid_from": now}
            | {"granted": 9, "charged": 0, "held": 0},
        ),
        ("jobs", job),
        ("ledger", hold),
        ("ledger", hold),
    ]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0007")
        for table, row in rows:
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"), row)
    engine.dispose()
    store = Store(url)
    store.migrate()
    [attempt] = store.read_sync(lambda tx: tx.attempts.of_job(7))
    assert (attempt.number, attempt.outcome, attempt.cpu_seconds) == (2, None, 3)
    assert store.write_sync(lambda tx: tx.attempts.begin(7, "local")) == 3
    store.close()


def test_two_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'beamhub.db'}"
    stores = [Store(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Store.migrate, stores))
    for store in stores:
        store.close()


def test_whether_the_tables_are_there(store: Store, postgresql_url: str, tmp_path: Path) -> None:
    assert store.migrated()
    for url in (f"sqlite:///{tmp_path / 'new.db'}", postgresql_url):
        empty = Store(url)
        assert not empty.migrated()
        empty.migrate()
        assert empty.migrated()
        empty.close()
    with store._write_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert not store.migrated()


def test_a_newer_database_is_refused_in_plain_words(store: Store) -> None:
    with store._write_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BeamhubError, match="newer"):
        store.migrate()


def test_another_kind_of_database_is_refused_without_its_password() -> None:
    with pytest.raises(BeamhubError) as error:
        Store("mysql://root:secret@host/db")
    assert "secret" not in str(error.value)
    assert "sqlite" in error.value.remedy


def test_a_failed_write_leaves_nothing(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.instruments.create(instrument())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write_sync(work)
    assert store.read_sync(lambda tx: tx.instruments.get("sim-mx")) is None


def test_foreign_keys_hold(store: Store) -> None:
    with pytest.raises(IntegrityError):
        store.write_sync(lambda tx: tx.members.add("none-2026-00001", "ada", Role.PI, "sam"))


def test_a_read_can_not_write(store: Store) -> None:
    with pytest.raises(DBAPIError):
        store.read_sync(lambda tx: tx.instruments.create(instrument()))


def test_a_read_sees_one_snapshot(store: Store) -> None:
    store.write_sync(lambda tx: tx.instruments.create(instrument()))

    def work(tx: Transaction) -> tuple[str, str]:
        before = tx.instruments.get("sim-mx")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(store.write_sync, lambda tx: tx.instruments.change("sim-mx", title="new")).result()
        after = tx.instruments.get("sim-mx")
        assert before
        assert after
        return before.title, after.title

    assert store.read_sync(work) == ("sim-mx", "sim-mx")


def test_sqlite_commits_reach_the_disk(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'beamhub.db'}")
    with store._write_engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    store.close()


def test_many_threads_write_and_nothing_is_lost(store: Store) -> None:
    """Each reads a value and writes it back plus one: an interleaving would lose some."""
    store.write_sync(lambda tx: tx.instruments.create(instrument()))

    def increment(tx: Transaction) -> None:
        tx.cursors.set("counter", tx.cursors.get("counter") + 1)
        emit(tx, "test.counted", actor="sam")

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.write_sync, increment) for _ in range(200)]:
            done.result()
    assert store.read_sync(lambda tx: tx.cursors.get("counter")) == 200
    events = store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    assert [event.id for event in events] == list(range(1, 201))


async def test_the_loop_is_free_while_a_transaction_runs(store: Store) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(tx: Transaction) -> str:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(leave.wait(), loop).result()
        return "done"

    task = asyncio.create_task(store.write(work))
    await entered.wait()
    # the writer is inside its transaction; a read goes past it
    assert (await store.read(lambda tx: tx.instruments.list(only=None, after=None, limit=5))).items == []
    leave.set()
    assert await task == "done"


async def test_callbacks_come_after_the_commit_and_only_then(store: Store) -> None:
    seen: list[int] = []
    store.on_commit(lambda: seen.append(store.read_sync(lambda tx: tx.events.head())))
    await store.write(lambda tx: emit(tx, "test", actor="sam"))

    def failing(tx: Transaction) -> None:
        emit(tx, "test", actor="sam")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(failing)
    assert len(seen) == 1
    assert seen[0] >= 1


def next_page(cursor: str, tx: Transaction) -> Page[Experiment]:
    return tx.experiments.list(only=None, after=cursor, limit=10)


async def test_what_waits_is_committed_together_each_for_itself(store: Store) -> None:
    commits: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def first(tx: Transaction) -> None:
        begun.set()
        assert go.wait(60)

    def work(tx: Transaction, number: int) -> int:
        tx.instruments.create(instrument(f"mx-{number}"))
        emit(tx, "made", actor="sam", subject=f"mx-{number}")
        if number % 3 == 0:
            raise Invalid("three", "Take another.")
        if number == 7:
            tx.instruments.create(instrument("mx-5"))  # is there already
        return number

    store.on_commit(lambda: commits.append(store.read_sync(lambda tx: tx.events.head())))
    holding = asyncio.ensure_future(store.write(first))
    await asyncio.to_thread(begun.wait, 60)
    writing = [asyncio.ensure_future(store.write(partial(work, number=number))) for number in range(10)]
    await asyncio.sleep(0)  # all of them wait now
    writing[4].cancel()
    await asyncio.sleep(0)  # it has been told
    go.set()
    outcomes = await asyncio.gather(holding, *writing, return_exceptions=True)
    assert len(commits) == 2
    for number, outcome in enumerate(outcomes[1:]):
        wanted = {4: asyncio.CancelledError, 7: IntegrityError}.get(
            number, Invalid if number % 3 == 0 else int
        )
        assert isinstance(outcome, wanted), outcome
    events = store.read_sync(lambda tx: tx.events.after(0, limit=100))
    assert [event.subject for event in events] == ["mx-1", "mx-2", "mx-5", "mx-8"]
    there = store.read_sync(lambda tx: tx.instruments.list(only=None, after=None, limit=100)).items
    assert {one.id for one in there} == {"mx-1", "mx-2", "mx-5", "mx-8"}


def test_pages_hold_each_row_once_while_the_list_grows(store: Store) -> None:
    def create(tx: Transaction) -> None:
        tx.instruments.create(instrument())
        for number in range(25):
            tx.experiments.create("sim-mx", f"Experiment {number}", "ada")

    store.write_sync(create)
    seen: list[str] = []
    page = store.read_sync(lambda tx: tx.experiments.list(only=None, after=None, limit=10))
    seen += [experiment.id for experiment in page.items]
    while cursor := page.next:
        store.write_sync(lambda tx: tx.experiments.create("sim-mx", "newer", "ada"))
        page = store.read_sync(partial(next_page, cursor))
        seen += [experiment.id for experiment in page.items]
    year = datetime.now(UTC).year
    assert seen == [f"sim-mx-{year}-{number:05d}" for number in range(25, 0, -1)]


@pytest.mark.parametrize(
    "cursor", ["", "x", "%%%", "e30", "WzFd", "WyIyMDI2LTAxLTAxIiwgImEiXQ", "é", "W251bGwsbnVsbF0"]
)
def test_a_cursor_that_no_page_gave_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(Invalid):
        store.read_sync(lambda tx: tx.experiments.list(only=None, after=cursor, limit=10))


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_its_bounds(store: Store, limit: int) -> None:
    with pytest.raises(Invalid):
        store.read_sync(lambda tx: tx.instruments.list(only=None, after=None, limit=limit))


def test_experiments_are_numbered_by_instrument_and_year(store: Store) -> None:
    def work(tx: Transaction) -> list[str]:
        tx.instruments.create(instrument("mx"))
        tx.instruments.create(instrument("mx-2026"))  # its ids begin like those of mx
        return [tx.experiments.create(id_, "t", "ada") for id_ in ("mx-2026", "mx", "mx", "mx-2026")]

    year = datetime.now(UTC).year
    expected = [f"mx-2026-{year}-00001", f"mx-{year}-00001", f"mx-{year}-00002", f"mx-2026-{year}-00002"]
    assert store.write_sync(work) == expected


def test_an_agent_is_connected_while_it_beats(store: Store) -> None:
    store.write_sync(lambda tx: tx.instruments.create(instrument()))
    store.write_sync(lambda tx: tx.instruments.beat("sim-mx", Heartbeat(host="det", version="1")))
    found = store.read_sync(lambda tx: tx.instruments.get("sim-mx"))
    assert found
    assert found.agent
    assert found.agent.connected
    old = datetime.now(UTC) - timedelta(seconds=16)
    store.write_sync(lambda tx: tx.instruments.change("sim-mx", heartbeat_at=old))
    found = store.read_sync(lambda tx: tx.instruments.get("sim-mx"))
    assert found
    assert found.agent
    assert not found.agent.connected
    assert found.agent.last_seen == old


def test_a_repeated_request_gets_the_first_answer(store: Store) -> None:
    def claim(tx: Transaction) -> Any:
        return tx.idempotency.claim("ada", "key", "digest")

    assert store.write_sync(claim) is None
    assert store.write_sync(claim).status is None  # still being answered
    store.write_sync(lambda tx: tx.idempotency.settle("ada", "key", 201, "{}"))
    answer = store.write_sync(claim)
    assert (answer.request_digest, answer.status, answer.body) == ("digest", 201, "{}")
    assert store.write_sync(lambda tx: tx.idempotency.claim("ben", "key", "digest")) is None  # another's key
    store.write_sync(lambda tx: tx.idempotency.expire(datetime.now(UTC) + timedelta(seconds=1)))
    assert store.write_sync(claim) is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(ANYTHING)
@example("a name that is no Unicode: \udcff")
@example([10**30, -(2**63), 5e-324, 1.7976931348623157e308, float("inf")])
def test_what_is_stored_as_json_comes_back(value: Any) -> None:
    assert repr(_json(json.dumps(value))) == repr(value)


def test_times_are_utc_or_refused(store: Store) -> None:
    store.write_sync(lambda tx: tx.instruments.create(instrument()))
    found = store.read_sync(lambda tx: tx.instruments.get("sim-mx"))
    assert found
    assert found.created.utcoffset() == timedelta(0)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(Exception, match="without a time zone"):
        store.write_sync(lambda tx: tx.instruments.change("sim-mx", heartbeat_at=naive))


def test_postgresql_runs_as_somebody_else_than_root(postgresql_server: str) -> None:
    folder = Path(postgresql_server.partition("host=")[2])
    assert (folder / "data").stat().st_uid != 0
    assert os.access(folder, os.W_OK)


async def test_a_database_without_room_says_so_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'beamhub.db'}")
    store.migrate()

    def limit(pages: int) -> None:
        with store._write_engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def tell(tx: Transaction) -> None:
        emit(tx, "much", actor="sam", data={"text": "x" * 1_000_000})

    limit(1)  # which is to say: no more than there are
    with pytest.raises(DBAPIError) as full:
        await store.write(tell)
    told = store.explained(full.value)
    assert isinstance(told, DiskFull)
    assert "no room" in str(told)
    assert store.read_sync(lambda tx: tx.events.head()) == 0
    limit(2**30)
    await store.write(tell)
    assert store.read_sync(lambda tx: tx.events.head()) == 1
    other = ValueError("something else")
    assert store.explained(other) is other
    store.close()


async def test_a_database_that_is_locked_says_so_and_keeps_nobody_for_longer_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beamhub.store.BUSY_TIMEOUT", 1.0)
    store = Store(f"sqlite:///{tmp_path / 'beamhub.db'}")
    store.migrate()
    tries: list[str] = []
    tried, go = threading.Event(), threading.Event()

    def trying(*told: Any) -> None:
        tries.append(told[2])
        tried.set()
        assert go.wait(60)

    event.listen(store._write_engine, "before_cursor_execute", trying)
    with contextlib.closing(sqlite3.connect(tmp_path / "beamhub.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        first = asyncio.ensure_future(store.write(lambda tx: tx.instruments.create(instrument("one"))))
        await asyncio.to_thread(tried.wait, 60)
        late = asyncio.ensure_future(store.write(lambda tx: tx.instruments.create(instrument("two"))))
        await asyncio.sleep(0)  # it waits now
        go.set()
        assert store.read_sync(lambda tx: tx.instruments.get("one")) is None  # readers don't wait
        failed = await asyncio.gather(first, late, return_exceptions=True)
        other.execute("ROLLBACK")
    assert tries == ["BEGIN IMMEDIATE"]
    for error in failed:
        told = store.explained(error)
        assert isinstance(told, Unavailable)
        assert str(told) == (
            "The service's database is locked. "
            "Try again in a minute; if it stays so, tell the facility's operators."
        )
    await store.write(lambda tx: tx.instruments.create(instrument("one")))
    store.close()


async def test_what_others_have_locked_in_postgresql_keeps_nobody_for_longer_than_once(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that somebody works on by hand, a table that is being rebuilt, a writer that has stopped."""
    monkeypatch.setattr("beamhub.store.BUSY_TIMEOUT", 1.0)
    store = Store(postgresql_url)
    store.migrate()
    await store.write(lambda tx: tx.instruments.create(instrument("one")))
    other = create_engine(postgresql_url)
    entered = threading.Event()

    def rename(tx: Transaction, title: str) -> None:
        entered.set()
        tx.instruments.change("one", title=title)

    with other.connect() as holder:
        holder.execute(text("UPDATE instruments SET title = 'held' WHERE id = 'one'"))
        first = asyncio.ensure_future(store.write(partial(rename, title="first")))
        await asyncio.to_thread(entered.wait, 60)
        late = [asyncio.ensure_future(store.write(partial(rename, title="late"))) for _ in range(100)]
        free = asyncio.ensure_future(store.write(lambda tx: tx.instruments.create(instrument("two"))))
        failed = await asyncio.gather(first, *late, return_exceptions=True)
        await free
        holder.rollback()

        holder.execute(text("LOCK TABLE instruments"))
        with pytest.raises(OperationalError) as read:
            await store.read(lambda tx: tx.instruments.get("one"))
        holder.rollback()

        holder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITERS_LOCK})
        with pytest.raises(OperationalError) as write:
            await store.write(partial(rename, title="third"))
        holder.rollback()
    for error in (*failed, read.value, write.value):
        told = store.explained(error)
        assert isinstance(told, Unavailable), error
        assert str(told).startswith("The service's database is locked. ")
    await store.write(partial(rename, title="last"))
    there = store.read_sync(lambda tx: tx.instruments.list(only=None, after=None, limit=5)).items
    assert [one.title for one in there] == ["last", "two"]
    other.dispose()
    store.close()


def test_a_process_that_has_stopped_while_it_wrote_keeps_nobody_for_ever(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(postgresql_url)
    other.migrate()
    monkeypatch.setattr("beamhub.store.STALLED", 0.5)
    stopped = Store(postgresql_url)

    def stop(tx: Transaction) -> None:
        other.write_sync(lambda tx: tx.instruments.create(instrument("kept")))
        tx.instruments.get("lost")

    with pytest.raises(DBAPIError) as woken:
        stopped.write_sync(stop)
    assert isinstance(stopped.explained(woken.value), Unavailable)
    there = stopped.read_sync(lambda tx: tx.instruments.list(only=None, after=None, limit=5)).items
    assert [one.id for one in there] == ["kept"]
    stopped.close()
    other.close()


def test_a_database_that_is_away_says_so(tmp_path: Path) -> None:
    store = Store(f"postgresql+psycopg://beamhub@/beamhub?host={tmp_path}")
    with pytest.raises(OperationalError) as away:
        store.read_sync(lambda tx: tx.events.head())
    told = store.explained(away.value)
    assert isinstance(told, Unavailable)
    assert "does not answer" in str(told)
    store.close()

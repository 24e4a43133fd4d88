"""What the agent remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from beamhub.agent.file import Stamp
from beamhub.agent.journal import Entry, Journal, JournalError, Snapshot, State

STAMP = Stamp(inode=2**63 - 1, size=2**40, mtime_ns=1_700_000_000_123_456_789)
LATER = Stamp(inode=STAMP.inode, size=STAMP.size, mtime_ns=STAMP.mtime_ns + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sim-mx.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, "sim-mx")
    yield journal
    journal.close()


def test_a_restart_forgets_nothing(path: Path) -> None:
    journal = Journal(path, "sim-mx")
    for name in ("queued", "sending", "arrived", "refused"):
        journal.queue(name, STAMP)
    journal.hashed("sending", "ab" * 32, "key")
    journal.begun("sending", "/uploads/1", "sim-mx-2026-00001")
    journal.arrived("arrived")
    journal.refused("refused", "its name is not allowed")
    journal.close()

    journal = Journal(path, "sim-mx")
    assert {entry.path: entry.state for entry in journal.unfinished()} == {
        "queued": State.QUEUED,
        "sending": State.QUEUED,
        "refused": State.REFUSED,
    }
    sending, refused = journal.find("sending"), journal.find("refused")
    assert sending is not None
    assert (sending.stamp, sending.digest, sending.key) == (STAMP, "ab" * 32, "key")
    assert sending.upload == "/uploads/1"
    assert refused is not None
    assert refused.error == "its name is not allowed"
    assert journal.settled("arrived", STAMP)
    assert journal.settled("refused", STAMP)
    assert not journal.settled("queued", STAMP)
    assert not journal.settled("unheard of", STAMP)
    journal.retry_refused()
    assert not journal.settled("refused", STAMP)
    journal.close()


def test_many_files_at_once(journal: Journal) -> None:
    names = [f"a 'quoted' \"name\" of {number} µm" for number in range(300)]
    for name in names:
        journal.queue(name, STAMP)
    journal.hashed_all({name: (f"digest of {name}", f"key of {name}") for name in names})
    journal.arrived_all(dict.fromkeys(names[:200], "sim-mx-2026-00001"))
    found = journal.find_all([*names, "unheard of"])
    assert found.keys() == set(names)
    assert {(e.digest, e.key) for e in found.values()} == {(f"digest of {n}", f"key of {n}") for n in names}
    assert [found[name].state for name in names] == [State.ARRIVED] * 200 + [State.QUEUED] * 100
    assert {found[name].experiment for name in names} == {"sim-mx-2026-00001", None}
    assert journal.find(names[0]) == found[names[0]]


def test_what_was_sent_of_a_file_while_it_grew_is_kept_until_it_is_over(path: Path) -> None:
    def begin(journal: Journal) -> None:
        journal.grow("a", STAMP, "key")
        journal.begun("a", "/uploads/1", "sim-mx-2026-00001")
        journal.sent("a", {0: b"\0" * 8, 1: b"1" * 8})
        journal.sent("a", {1: b"2" * 8})

    journal = Journal(path, "sim-mx")
    begin(journal)
    assert not journal.settled("a", STAMP)
    journal.close()
    journal = Journal(path, "sim-mx")
    assert [(entry.path, entry.state) for entry in journal.unfinished()] == [("a", State.GROWING)]
    assert journal.blocks("a") == {0: b"\0" * 8, 1: b"2" * 8}
    grown = Stamp(STAMP.inode, STAMP.size + 1, STAMP.mtime_ns + 1)
    journal.queue("a", grown)
    entry = journal.find("a")
    assert entry
    assert (entry.state, entry.stamp, entry.upload) == (State.QUEUED, grown, "/uploads/1")
    assert len(journal.blocks("a")) == 2
    for over in (journal.arrived, journal.forget, journal.restart, journal.given_up):
        begin(journal)
        over("a")
        assert journal.blocks("a") == {}
    begin(journal)
    journal.queue("a", Stamp(7, 1, 1))  # another file of that name
    assert journal.blocks("a") == {}
    journal.close()


def test_blocks_that_the_service_has_in_a_state_that_is_not_known(journal: Journal) -> None:
    journal.grow("a", STAMP, "key")
    journal.sent("a", {number: bytes([number] * 8) for number in range(5)})
    journal.sent("b", {4: b"of another"})
    assert [journal.block("a", number) for number in (3, 7)] == [b"\3" * 8, b""]
    journal.sent("a", {1: b""})
    assert journal.block("a", 1) == b""
    journal.not_sent("a", 3)
    assert journal.blocks("a") == {0: bytes(8), 1: b"", 2: b"\2" * 8}
    assert journal.block("b", 4) == b"of another"


def test_what_is_known_of_a_file_holds_for_one_state_of_it(journal: Journal) -> None:
    journal.queue("a", STAMP)
    journal.hashed("a", "ab" * 32, "key")
    journal.begun("a", "/uploads/1", "sim-mx-2026-00001")

    journal.queue("a", STAMP)
    entry = journal.find("a")
    assert entry is not None
    assert (entry.digest, entry.key, entry.upload) == ("ab" * 32, "key", "/uploads/1")

    journal.queue("a", LATER)
    entry = journal.find("a")
    assert entry is not None
    assert entry == Entry(
        "a", LATER, State.QUEUED, digest=None, key=None, upload=None, experiment=None, error=""
    )
    assert not journal.settled("a", STAMP)


def test_an_arrived_file_that_changes_is_no_longer_settled(journal: Journal) -> None:
    journal.queue("a", STAMP)
    journal.arrived("a")

    assert journal.settled("a", STAMP)
    assert not journal.settled("a", LATER)


def test_from_the_beginning(journal: Journal) -> None:
    journal.queue("a", STAMP)
    journal.hashed("a", "ab" * 32, "key")
    journal.begun("a", "/uploads/1", "sim-mx-2026-00001")

    journal.restart("a")

    entry = journal.find("a")
    assert entry is not None
    assert (entry.digest, entry.key, entry.upload) == (None, None, None)
    assert entry.experiment == "sim-mx-2026-00001", "the file would go to another experiment"


@pytest.mark.usefixtures("journal")
def test_one_agent_at_a_time(path: Path) -> None:
    with pytest.raises(JournalError, match="another agent already works with the journal"):
        Journal(path, "sim-mx")


def test_one_instrument_only(path: Path) -> None:
    Journal(path, "sim-mx").close()

    with pytest.raises(JournalError, match="belongs to instrument sim-mx: give instrument other its own"):
        Journal(path, "other")
    Journal(path, "sim-mx").close()


def test_a_damaged_journal_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a journal" * 1000)

    with pytest.raises(JournalError, match=r"can't be used .*: move it away"):
        Journal(path, "sim-mx")


def test_a_journal_that_is_damaged_inside_is_named_when_that_is_met(path: Path) -> None:
    journal = Journal(path, "sim-mx")
    for number in range(2000):
        journal.queue(f"/data/{number}", STAMP)
    journal.close()
    page = 4096
    with path.open("r+b") as file:  # all but the first pages, which tell what is where
        file.seek(10 * page)
        file.write(b"damaged!" * ((path.stat().st_size - 10 * page) // 8))

    journal = Journal(path, "sim-mx")
    with pytest.raises(JournalError, match=r"can't be used .*: move it away"):
        list(journal.unfinished())
    journal.close()
    snapshot = Snapshot(path)
    with pytest.raises(JournalError, match="move it away"):
        snapshot.find_all([f"/data/{number}" for number in range(2000)])
    snapshot.close()


def test_a_file_that_grows_again_keeps_what_has_been_sent(journal: Journal) -> None:
    journal.grow("grew", STAMP, "key")
    journal.begun("grew", "/uploads/1", "sim-mx-2026-00001")
    journal.sent("grew", {0: b"01234567"})
    journal.queue("grew", STAMP)
    journal.hashed("grew", "xxh128:ab", "key")
    assert journal.grows_again("grew", LATER)

    entry = journal.find("grew")
    assert entry is not None
    assert (entry.state, entry.stamp, entry.upload) == (State.GROWING, LATER, "/uploads/1")
    assert (entry.key, entry.digest) == ("key", None)
    assert journal.blocks("grew") == {0: b"01234567"}
    assert not journal.grows_again("grew", LATER), "it does already"

    journal.queue("grew", LATER)
    assert not journal.grows_again("grew", Stamp(1, 2, 3)), "that is another file"
    journal.arrived("grew")
    assert not journal.grows_again("grew", STAMP), "what is published is not added to"
    journal.queue("plain", STAMP)
    journal.begun("plain", "/uploads/2", "sim-mx-2026-00001")
    assert not journal.grows_again("plain", LATER), "its length was told"


def test_a_newer_journal_is_left_alone(path: Path) -> None:
    Journal(path, "sim-mx").close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()

    with pytest.raises(JournalError, match="newer beamhub"):
        Journal(path, "sim-mx")


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(JournalError, match="can't be written"):
        Journal(tmp_path / "file" / "journal.sqlite", "sim-mx")


def test_looking_at_a_journal_while_an_agent_works_with_it(path: Path, journal: Journal) -> None:
    journal.queue("a", STAMP)
    journal.arrived("a")

    snapshot = Snapshot(path)
    assert snapshot.settled("a", STAMP)
    assert not snapshot.settled("b", STAMP)
    snapshot.close()


def test_looking_at_no_journal(tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "none.sqlite")
    assert not snapshot.settled("a", STAMP)
    snapshot.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_skipped_stays_so_until_it_is_wanted(path: Path) -> None:
    journal = Journal(path, "sim-mx")
    for name in ("skipped", "arrived"):
        journal.queue(name, STAMP)
    journal.hashed("skipped", "ab" * 32, "key")
    journal.begun("skipped", "/uploads/1", "sim-mx-2026-00001")
    journal.skip("skipped", "skipped by sam: ice")
    journal.arrived("arrived")
    journal.obey(7)
    journal.close()

    journal = Journal(path, "sim-mx")
    assert journal.obeyed() == 7
    assert (journal.count_arrived(), journal.count_skipped()) == (1, 1)
    assert journal.settled("skipped", STAMP)
    assert journal.settled("skipped", LATER), "a change made it wanted"
    assert list(journal.unfinished()) == []
    (entry,) = journal.skipped()
    assert (entry.upload, entry.error) == ("/uploads/1", "skipped by sam: ice")
    assert [entry.path for entry in journal.of("sim-mx-2026-00001")] == ["skipped"]
    journal.given_up("skipped")
    for name in ("skipped", "arrived"):
        journal.requeue(name)
    assert [entry.path for entry in journal.unfinished()] == ["skipped"], "what has arrived is sent again"
    journal.close()


def test_a_file_by_its_other_name(journal: Journal) -> None:
    journal.queue("/data/old", Stamp(7, 5, 1))
    journal.queue("/data/another", Stamp(8, 5, 1))
    assert journal.called("/data/old", Stamp(7, 5, 1)) is None
    journal.queue("/data/new", Stamp(7, 5, 1))

    assert journal.called("/data/old", Stamp(7, 5, 1)) == "/data/new"
    assert journal.called("/data/old", Stamp(7, 6, 1)) is None, "it has been written since"

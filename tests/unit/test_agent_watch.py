"""What the agent sees in a directory: real directories, real notices of the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from beamhub.agent.config import Watch
from beamhub.agent.disk import Disk
from beamhub.agent.file import Stamp
from beamhub.agent.journal import JournalError
from beamhub.agent.watch import LostError, Sighting, Tree

WALKS = 20
QUEUED_NOTICES = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


class Watcher:
    """A tree that is followed, and all that was seen in it."""

    def __init__(self, watch: Watch) -> None:
        self.known: dict[str, Stamp] = {}
        self.seen: list[Sighting] = []
        self.tree = Tree(watch, lambda path, stamp: self.known.get(path) == stamp, self._note, Disk(4))
        self._news = asyncio.Event()

    def _note(self, sighting: Sighting) -> None:
        self.seen.append(sighting)
        self._news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._news.clear()
            await self._news.wait()

    async def sees(self, name: str, *, finished: bool = False) -> Sighting:
        def found() -> list[Sighting]:
            return [s for s in self.seen if s.name == name and s.finished == finished]

        await self.until(lambda: bool(found()))
        return found()[-1]

    @property
    def names(self) -> set[str]:
        return {sighting.name for sighting in self.seen}


@asynccontextmanager
async def following(root: Path, **settings: object) -> AsyncIterator[Watcher]:
    watcher = Watcher(Watch.model_validate({"path": str(root), **settings}))
    task = asyncio.create_task(watcher.tree.follow())
    try:
        await watcher.tree.walked.wait()
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    return root


async def test_what_was_there_before(root: Path) -> None:
    (root / "run1" / "deep").mkdir(parents=True)
    (root / "a.h5").write_bytes(b"1")
    (root / "run1" / "deep" / "b.h5").write_bytes(b"22")

    async with following(root) as watcher:
        assert watcher.names == {"a.h5", "run1/deep/b.h5"}
        sighting = await watcher.sees("run1/deep/b.h5")
        assert sighting.stamp.size == 2
        assert sighting.path == f"{root}/run1/deep/b.h5"


async def test_known_files_need_no_attention(root: Path) -> None:
    (root / "a.h5").write_bytes(b"1")
    stamp = Stamp.of((root / "a.h5").stat())
    watch = Watch.model_validate({"path": str(root)})

    assert not list(Tree(watch, lambda _, known: known == stamp, lambda _: None, Disk(1)).look())
    assert list(Tree(watch, lambda _, known: known != stamp, lambda _: None, Disk(1)).look())


async def test_a_renamed_file_is_told_from_one_that_is_being_written(root: Path) -> None:
    async with following(root) as watcher:
        (root / ".a.h5").write_bytes(b"1")
        (root / ".a.h5").rename(root / "a.h5")
        renamed = await watcher.sees("a.h5", finished=True)
        assert renamed.stamp.size == 1

        with (root / "b.h5").open("wb") as file:
            file.write(b"half")
            file.flush()
            assert not (await watcher.sees("b.h5")).finished
            seen = len(watcher.seen)
        await watcher.until(lambda: len(watcher.seen) > seen)
        assert {(s.name, s.finished) for s in watcher.seen} == {("a.h5", True), ("b.h5", False)}


async def test_a_file_that_is_moved_in_over_an_older_one(root: Path, tmp_path: Path) -> None:
    (root / "a.h5").write_bytes(b"old")
    async with following(root) as watcher:
        (tmp_path / "new").write_bytes(b"newer")
        (tmp_path / "new").rename(root / "a.h5")

        assert (await watcher.sees("a.h5", finished=True)).stamp.size == 5


async def test_a_hard_link_appears(root: Path, tmp_path: Path) -> None:
    async with following(root) as watcher:
        (tmp_path / "a.h5").write_bytes(b"1")
        (root / "a.h5").hardlink_to(tmp_path / "a.h5")

        await watcher.sees("a.h5")


async def test_new_folders_are_watched_with_all_below(root: Path, tmp_path: Path) -> None:
    async with following(root) as watcher:
        (root / "x" / "y" / "z").mkdir(parents=True)
        (root / "x" / "y" / "z" / "early.h5").write_bytes(b"1")
        await watcher.sees("x/y/z/early.h5")
        (root / "x" / "y" / "z" / ".tmp").write_bytes(b"1")
        (root / "x" / "y" / "z" / ".tmp").rename(root / "x" / "y" / "z" / "late.h5")
        await watcher.sees("x/y/z/late.h5", finished=True)

        (tmp_path / "outside" / "deep").mkdir(parents=True)
        (tmp_path / "outside" / "deep" / "c.h5").write_bytes(b"1")
        (tmp_path / "outside").rename(root / "inside")
        await watcher.sees("inside/deep/c.h5")


async def test_renamed_folders_have_their_new_name(root: Path) -> None:
    (root / "old" / "deep").mkdir(parents=True)
    async with following(root) as watcher:
        (root / "old").rename(root / "new")
        (root / "new" / "deep" / "first.h5").write_bytes(b"1")
        await watcher.sees("new/deep/first.h5")
        (root / "new" / "deep" / "second.h5").write_bytes(b"1")
        await watcher.sees("new/deep/second.h5")

        assert all(name.startswith("new/") for name in watcher.names)


async def test_a_folder_that_was_deleted_and_made_again(root: Path) -> None:
    (root / "run").mkdir()
    async with following(root) as watcher:
        (root / "run").rmdir()
        (root / "run").mkdir()
        (root / "run" / "a.h5").write_bytes(b"1")
        await watcher.sees("run/a.h5")
        (root / "run" / "b.h5").write_bytes(b"1")
        await watcher.sees("run/b.h5")


async def test_what_is_not_wanted_is_not_seen(root: Path) -> None:
    for folder in (".hidden", "scratch", "run"):
        (root / folder).mkdir()
    async with following(root, exclude=["scratch", "*.log"]) as watcher:
        for name in (".hidden/a.h5", "scratch/a.h5", "run/.a.h5", "run/a.h5.tmp", "run/a.log", "run/a.h5~"):
            (root / name).write_bytes(b"1")
        (root / "run" / "last.h5").write_bytes(b"1")
        await watcher.sees("run/last.h5")

        assert watcher.names == {"run/last.h5"}
        assert not watcher.tree.odd


async def test_a_path_that_is_too_long_does_not_keep_others(root: Path) -> None:
    long = "n" * 250
    folder = os.open(root, os.O_RDONLY)
    whole, left = divmod(4000 - len(str(root)), 251)
    for name in [long] * whole + ["n" * max(1, left - 1)]:
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    for name in (long, "short"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    async with following(root) as watcher:  # which has looked at everything
        await watcher.until(lambda: any(name.endswith("/short") for name in watcher.names))
        assert "File name too long" in " ".join(watcher.tree.odd.values())


@pytest.mark.parametrize("polling", [False, True])
async def test_who_is_told_and_fails_ends_it(root: Path, polling: bool) -> None:
    def fail(_: Sighting) -> None:
        raise JournalError("the disk is full")

    (root / "a").touch()
    watch = Watch.model_validate({"path": str(root), "polling": polling})
    with pytest.raises(ExceptionGroup) as failure:
        await Tree(watch, lambda *_: False, fail, Disk(4)).follow()
    assert failure.group_contains(JournalError, match="the disk is full")


@pytest.mark.parametrize("early", [True, False], ids=["already there", "appearing"])
async def test_links_pipes_and_sockets_are_reported_and_not_followed(
    root: Path, tmp_path: Path, *, early: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.h5").write_bytes(b"secret")

    def make_them() -> None:
        (root / "link.h5").symlink_to(outside / "secret.h5")
        (root / "folder").symlink_to(outside)
        (root / "dangling").symlink_to("nowhere")
        os.mkfifo(root / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "socket"))
        (root / os.fsdecode(b"latin-\xe9.h5")).write_bytes(b"1")
        (root / "z.h5").write_bytes(b"1")

    if early:
        make_them()
    async with following(root) as watcher:
        if not early:
            make_them()
        await watcher.sees("z.h5")

        assert watcher.names == {"z.h5"}
        odd = {os.fsencode(Path(path).name): why for path, why in watcher.tree.odd.items()}
        assert odd == {
            b"link.h5": "is a symbolic link: it is not followed and not sent",
            b"folder": "is a symbolic link: it is not followed and not sent",
            b"dangling": "is a symbolic link: it is not followed and not sent",
            b"pipe": "is a pipe: it is not followed and not sent",
            b"socket": "is a socket: it is not followed and not sent",
            b"latin-\xe9.h5": "has a name that is not UTF-8: rename it to have it sent",
        }


def test_devices_are_reported_and_not_opened() -> None:
    tree = Tree(
        Watch.model_validate({"path": "/dev", "include": ["null"]}), lambda *_: False, lambda _: None, Disk(1)
    )
    assert list(tree.look()) == []
    assert tree.odd["/dev/null"] == "is a device: it is not followed and not sent"


async def test_polling_finds_new_files_and_forgets_old_oddities(root: Path) -> None:
    (root / "link").symlink_to("nowhere")
    async with following(root, polling=True, rescan=0.1) as watcher:
        assert f"{root}/link" in watcher.tree.odd
        (root / "link").unlink()
        (root / "a.h5").write_bytes(b"1")
        await watcher.sees("a.h5")
        (root / "b.h5").write_bytes(b"1")
        await watcher.sees("b.h5")

        assert not watcher.tree.odd


async def test_a_large_directory_is_glanced_at_between_looks(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "run" / "deep").mkdir(parents=True)
    (root / "run" / "old.cbf").touch()
    monkeypatch.setattr("beamhub.agent.watch.SHARE", 1e-9)  # as if the first look had taken very long
    async with following(root, polling=True, rescan=0.1) as watcher:
        (root / "run" / "deep" / "a.cbf").touch()
        await watcher.sees("run/deep/a.cbf")
        (root / "run" / "new" / "newer").mkdir(parents=True)
        (root / "run" / "new" / "newer" / "b.cbf").touch()
        await watcher.sees("run/new/newer/b.cbf")
        (root / "run" / "new" / "newer" / "c.cbf").touch()
        await watcher.sees("run/new/newer/c.cbf")

        names = [sighting.name for sighting in watcher.seen]
        assert names.count("run/old.cbf") < len(names) - names.count("run/old.cbf"), "it looked everywhere"


def test_a_glance_looks_twice_into_a_folder_that_has_changed(root: Path) -> None:
    (root / "quiet").mkdir()
    (root / "quiet" / "a.cbf").touch()
    tree = Tree(Watch.model_validate({"path": str(root)}), lambda *_: False, lambda _: None, Disk(1))
    assert len(list(tree.look())) == 1
    assert list(tree.glance()) == []
    (root / "b.cbf").touch()
    for _ in range(2):  # another file may come in the same tick of the clock
        assert [[s.name for s in sightings] for sightings in tree.glance()] == [["b.cbf"]]
    assert list(tree.glance()) == []
    (root / "quiet" / "a.cbf").unlink()
    (root / "quiet").rmdir()
    list(tree.glance())
    assert str(root / "quiet") not in tree._changed, "it would be looked for for ever"


async def test_more_happens_than_the_kernel_can_queue(root: Path) -> None:
    (root / "a.cbf").touch()
    (root / "b.cbf").touch()
    async with following(root) as watcher:
        for _ in range(QUEUED_NOTICES // 2 + 1):  # and nobody reads them meanwhile
            (root / "a.cbf").open("ab").close()
            (root / "b.cbf").open("ab").close()
        (root / "last.cbf").touch()

        await watcher.sees("last.cbf")


@pytest.mark.parametrize("loss", ["delete", "rename"])
async def test_the_directory_itself_goes(root: Path, loss: str) -> None:
    tree = Tree(Watch.model_validate({"path": str(root)}), lambda *_: False, lambda _: None, Disk(1))
    task = asyncio.create_task(tree.follow())
    await tree.walked.wait()
    lose = root.rmdir if loss == "delete" else lambda: root.rename(root.with_name("elsewhere"))
    lose()

    with pytest.raises(LostError, match=f"{root} is gone"):
        await task


async def test_no_directory_at_all(tmp_path: Path) -> None:
    tree = Tree(
        Watch.model_validate({"path": str(tmp_path / "none")}), lambda *_: False, lambda _: None, Disk(1)
    )
    with pytest.raises(LostError, match="none can't be read"):
        await tree.follow()


async def test_nothing_is_left_open(root: Path) -> None:
    def descriptors() -> set[str]:
        return set(os.listdir(f"/proc/{os.getpid()}/fd"))  # noqa: PTH208

    before = descriptors()
    async with following(root):
        assert descriptors() > before
    assert descriptors() == before


async def test_what_is_to_be_looked_at_is_looked_at_once(tmp_path: Path) -> None:
    """However many overflows there were while everything was looked at."""
    (tmp_path / "a").write_text("a")
    looks, looking, go_on = 0, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def known(_: str, __: Stamp) -> bool:
        nonlocal looks
        looks += 1
        loop.call_soon_threadsafe(looking.set)
        assert go_on.wait(60)
        return True

    tree = Tree(Watch.model_validate({"path": str(tmp_path)}), known, lambda _: None, disk := Disk(1))
    task = asyncio.create_task(tree.follow())
    await looking.wait()
    for _ in range(WALKS):
        tree.look_again()
    go_on.set()
    await tree.walked.wait()
    for _ in range(2 * WALKS):
        await disk.ask(int)  # which waits for what is being looked at
    task.cancel()
    await asyncio.wait({task})
    assert await disk.close()
    assert looks == 2

"""What comes while an experiment is signed off, and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

import pytest
from beamhub import finalisations
from beamhub.finalisations import Finalisations
from beamhub.orders import Orders
from beamhub.schemas import Finalisation, FinalisationState, FinaliseRequest, Heartbeat, JournalReport
from beamhub.store.finalisations import GOING

from tests.unit.uploading import AGENT, SAM, Site, parts


@pytest.fixture
async def signing(site: Site) -> AsyncIterator[Finalisations]:
    signing = Finalisations(site.store, site.live, site.folder)
    yield signing
    await signing.close()


async def sign_off(site: Site, signing: Finalisations, *, force: bool = True) -> Finalisation:
    reason = "the late one is known" if force else ""
    await signing.begin(SAM, site.experiment, FinaliseRequest(force=force, reason=reason))
    while signing._tasks:
        await asyncio.wait(signing._tasks)
    return await signing.get(SAM, site.experiment)


def manifest(site: Site) -> list[str]:
    lines = (site.folder / site.experiment / "sha256sums").read_text().splitlines()
    return [line.split("  ")[1] for line in lines]


async def test_what_arrives_after_the_signature_outdates_it(site: Site, signing: Finalisations) -> None:
    await site.send("early.bin", b"early")
    late = await site.announce("late.bin", b"late")
    signed, known = await sign_off(site, signing), ["raw/late.bin is still on its way."]
    assert (signed.state, signed.differences) == (FinalisationState.DONE, known)
    assert manifest(site) == ["raw/early.bin"]
    await site.uploads.append(AGENT, late.id, 0, parts(b"late"))
    outdated = await signing.get(SAM, site.experiment)
    assert outdated.state is FinalisationState.OUTDATED
    assert outdated.differences[1:] == ["raw/late.bin has arrived after the check."]
    signed = await sign_off(site, signing, force=False)
    assert (signed.state, signed.differences) == (FinalisationState.DONE, [])
    assert manifest(site) == ["raw/early.bin", "raw/late.bin"]


async def test_what_arrives_while_the_manifest_is_made_is_in_it(
    site: Site, signing: Finalisations, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await site.announce("late.bin", b"late")
    loop, hash_ = asyncio.get_running_loop(), Finalisations._hash

    def and_then_it_comes(self: Finalisations, id_: str) -> tuple[dict[str, str], int]:
        found = hash_(self, id_)
        if not found[0]:
            coming = site.uploads.append(AGENT, late.id, 0, parts(b"late"))
            asyncio.run_coroutine_threadsafe(coming, loop).result(60)
        return found

    monkeypatch.setattr(Finalisations, "_hash", and_then_it_comes)
    signed = await sign_off(site, signing)
    assert signed.state is FinalisationState.DONE
    assert signed.differences[1:] == ["raw/late.bin has arrived after the check."]
    assert manifest(site) == ["raw/late.bin"]
    assert len(site.events("experiment.finalised")) == 1


async def test_what_arrives_while_the_disk_is_looked_at_is_no_difference(
    site: Site, signing: Finalisations, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.send("early.bin", b"early")
    loop, walk = asyncio.get_running_loop(), Finalisations._files
    names = iter(["before.bin", "after.bin"])

    def while_they_come(self: Finalisations, id_: str) -> dict[str, int]:
        if name := next(names, None):
            asyncio.run_coroutine_threadsafe(site.send(name, b"x"), loop).result(60)
        found = walk(self, id_)
        if name := next(names, None):
            asyncio.run_coroutine_threadsafe(site.send(name, b"x"), loop).result(60)
        return found

    monkeypatch.setattr(Finalisations, "_files", while_they_come)
    signed = await sign_off(site, signing, force=False)
    assert (signed.state, signed.differences) == (FinalisationState.DONE, [])
    assert [PurePosixPath(path).name for path in manifest(site)] == ["after.bin", "before.bin", "early.bin"]


async def test_others_write_while_an_experiment_is_compared(
    site: Site, signing: Finalisations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes."""
    differences, during = finalisations._differences, []

    def compare(*arguments: object) -> object:
        site.store.write_sync(lambda tx: tx.instruments.change("mx", title="Still here"))
        during.append(signing._store.read_sync(lambda tx: tx.finalisations.get(site.experiment)))
        return differences(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finalisations, "_differences", compare)
    assert (await sign_off(site, signing, force=False)).state is FinalisationState.DONE
    assert [seen and seen.state in GOING for seen in during] == [True]


async def test_an_answer_that_comes_too_late_is_not_kept_for_ever(
    site: Site, signing: Finalisations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalisations, "PATIENCE", 0.1)
    orders = Orders(site.store, site.live)
    await orders.heartbeat(AGENT, "mx", Heartbeat(host="detector", version="1"))
    blocked = await sign_off(site, signing, force=False)
    assert blocked.differences == ["The agent of mx has not told what it knows: is it running?"]
    command = await site.store.read(lambda tx: tx.finalisations.command(site.experiment))
    assert command is not None
    await orders.report(AGENT, "mx", command, JournalReport(part=1, last=True, items=[]))
    assert await site.store.read(lambda tx: tx.commands.reported(command))
    await sign_off(site, signing, force=False)
    assert not await site.store.read(lambda tx: tx.commands.reported(command))

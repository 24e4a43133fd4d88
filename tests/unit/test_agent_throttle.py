"""How fast the agent may send."""

from __future__ import annotations

import asyncio

import pytest
from beamhub.agent.throttle import BURST, SLICE, Throttle
from hypothesis import given
from hypothesis import strategies as st


@given(
    rate=st.floats(1.0, 1e10),
    asked=st.lists(st.tuples(st.integers(1, 2**20), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_no_more_than_the_rate_over_any_time(rate: float, asked: list[tuple[int, float]]) -> None:
    throttle = Throttle(rate)
    now, sent = 1000.0, list[tuple[float, int]]()
    for count, pause in asked:
        now += pause
        sent.append((now + throttle.reserve(count, now), count))

    for first, (begin, count) in enumerate(sent):
        total = sum(later for _, later in sent[first:]) - count  # its own bytes were waited for before
        assert total <= rate * (sent[-1][0] - begin + BURST) * (1 + 1e-6)


def test_what_was_not_used_is_not_saved_up() -> None:
    throttle = Throttle(100.0)
    assert throttle.reserve(100, now=0.0) == pytest.approx(1 - BURST)
    assert throttle.reserve(100, now=3600.0) == pytest.approx(1 - BURST)


def test_it_is_smooth_also_when_slow() -> None:
    throttle = Throttle(1e6)
    assert throttle.piece(2**20) == 1e6 * SLICE
    throttle.rate = 1.0
    assert throttle.piece(2**20) == 1
    throttle.rate = 1e12
    assert throttle.piece(2**20) == 2**20


def test_without_a_limit_nothing_waits() -> None:
    throttle = Throttle(None)
    assert throttle.piece(2**20) == 2**20
    assert throttle.reserve(2**40, now=0.0) == 0.0


def test_a_new_rate_holds_from_the_next_piece_on() -> None:
    throttle = Throttle(10.0)
    throttle.reserve(10, now=0.0)
    throttle.rate = 1000.0
    assert throttle.reserve(10, now=0.0) == pytest.approx(1 - BURST + 0.01)
    throttle.rate = None
    assert throttle.reserve(10, now=0.0) == 0.0


async def test_several_transfers_share_it_in_turn() -> None:
    throttle = Throttle(rate := 1000.0)
    order: list[int] = []

    async def transfer(number: int) -> None:
        for _ in range(3):
            await throttle.take(20)
            order.append(number)

    begun = asyncio.get_running_loop().time()
    await throttle.take(round(BURST * rate))  # nothing is left to catch up with
    await asyncio.gather(*map(transfer, range(3)))

    assert asyncio.get_running_loop().time() - begun >= 9 * 0.02
    assert [sorted(order[n : n + 3]) for n in (0, 3, 6)] == [[0, 1, 2]] * 3

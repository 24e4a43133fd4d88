"""Which frames of a file that grows may be told, and what has to be read again for that."""

from __future__ import annotations

from beamhub.agent.preview import next_told, reach
from beamhub.agent.sent import BLOCK
from hypothesis import given
from hypothesis import strategies as st

places = st.integers(0, 6 * BLOCK)
near = st.builds(lambda blocks, by: max(0, blocks * BLOCK + by), st.integers(0, 6), st.integers(-2, 2))
chunks = st.lists(st.tuples(places | near, st.integers(1, 3 * BLOCK) | st.integers(1, 3)), max_size=12)


@given(chunks=chunks, sizes=st.tuples(places | near, places | near), most=st.integers(0, 8))
def test_of_what_is_told_all_has_been_read_after_it_was_listed(
    chunks: list[tuple[int, int]], sizes: tuple[int, int], most: int
) -> None:
    before, offset = sorted(sizes)  # of what has been sent, that before `before` was read too early

    count, blocks = next_told(chunks, offset, before, most)

    fresh = [(before, offset), *((number * BLOCK, min((number + 1) * BLOCK, offset)) for number in blocks)]
    for begin, size in chunks[:count]:
        end = begin + size
        at = begin
        while at < end:  # each time, to the end of a piece that has been read since
            reached = max((last for first, last in fresh if first <= at < last), default=at)
            assert reached > at, f"byte {at} may have been another when it was read"
            at = reached
    assert blocks == sorted({*blocks})
    for number in blocks:
        first, last = number * BLOCK, min((number + 1) * BLOCK, before)
        needed = any(begin < last and begin + size > first for begin, size in chunks[:count])
        assert needed, "a block is read again for nothing"
    if count < len(chunks):
        begin, size = chunks[count]
        _, more = next_told(chunks[: count + 1], offset, before, 10**6)
        assert begin + size > offset or len(more) > most, "a frame was left out that could be told"
    assert count <= 1 or len(blocks) <= most


@given(chunks=chunks, size=places | near)
def test_how_far_the_frames_reach_that_are_in_a_file(chunks: list[tuple[int, int]], size: int) -> None:
    whole = []
    for offset, length in chunks:
        if offset + length > size:
            break
        whole.append(offset + length)
    assert reach(chunks, size) == max(whole, default=0) <= size

"""The digests of blocks that are sent in pieces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import xxhash
from beamhub.agent.sent import BLOCK, _blocks
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 3 * BLOCK + 1000
CONTENT = os.urandom(SIZE)
near = st.builds(
    lambda block, by: min(max(block * BLOCK + by, 0), SIZE), st.integers(0, 3), st.integers(-2, 2)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sent") / "file"
    path.write_bytes(CONTENT)
    return path


@settings(max_examples=50)
@given(cuts=st.sets(st.integers(0, SIZE) | near, max_size=6), forgotten=st.integers(0, SIZE))
def test_a_block_has_its_digest_once_it_is_whole(file: Path, cuts: set[int], forgotten: int) -> None:
    known, tail, descriptor = dict[int, bytes](), None, os.open(file, os.O_RDONLY)
    ends = sorted({*cuts, forgotten, SIZE} - {0})
    for begin, end in zip([0, *ends], ends, strict=False):
        tail = None if begin == forgotten else tail  # the agent was restarted
        pieces, digests, checksum, tail = _blocks(descriptor, end - begin, begin, None, tail)
        assert b"".join(pieces) == CONTENT[begin:end]
        assert checksum == xxhash.xxh3_128_digest(CONTENT[begin:end])
        known |= digests
    os.close(descriptor)
    assert known.keys() == {0, 1, 2, 3}
    for number, digest in known.items():
        block = CONTENT[number * BLOCK : (number + 1) * BLOCK]
        part = len(block) < BLOCK or (forgotten % BLOCK and forgotten // BLOCK == number)
        assert digest == (b"" if part else xxhash.xxh3_64_digest(block))
    assert (tail is None) == (3 * BLOCK < forgotten < SIZE)
    assert tail is None or tail.digest() == xxhash.xxh3_64_digest(CONTENT[3 * BLOCK :])

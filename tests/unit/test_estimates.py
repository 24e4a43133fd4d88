"""Estimates from earlier runs: right where there is a rule, robust where there are outliers, honest else."""

from __future__ import annotations

import math
import re

import pytest
from beamhub.estimates import Run, hint, predict, wait
from beamhub.schemas import Scaling
from hypothesis import given
from hypothesis import strategies as st

RUNS = st.lists(
    st.builds(Run, st.integers(1, 64), st.integers(0, 10_000), st.floats(0.01, 1e5)), min_size=1, max_size=20
)


def test_without_earlier_runs_nothing_is_said() -> None:
    assert predict([], 4, 100) is None
    assert hint([], 4) == ""


def test_as_many_cpus_and_frames_as_before_take_as_long() -> None:
    found = predict([Run(2, 100, seconds) for seconds in (50, 60, 55, 52, 58)], 2, 100)
    assert found
    assert found.likely == pytest.approx(55)
    assert found.low < 50
    assert found.high > 60


def test_one_odd_run_does_not_matter() -> None:
    runs = [Run(2, 100, 60.0)] * 6
    found = predict([*runs, Run(2, 100, 6000.0)], 2, 100)
    assert found
    assert found.likely == pytest.approx(60)


@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0])
def test_growth_with_frames_is_learned(growth: float) -> None:
    runs = [Run(2, frames, 10 * frames**growth) for frames in (100, 200, 400, 800)]
    found = predict(runs, 2, 1600)
    assert found
    assert found.likely == pytest.approx(10 * 1600**growth)


def test_speed_with_cpus_is_learned_from_runs_and_else_told_by_the_template() -> None:
    runs = [Run(cpus, 100, 100 / cpus) for cpus in (1, 2, 1, 2)]
    found = predict(runs, 4, 100)
    assert found
    assert found.likely == pytest.approx(25)
    slower = predict([Run(cpus, 100, 100.0 * cpus) for cpus in (1, 2)], 4, 100)
    assert slower
    assert slower.likely == pytest.approx(100 * math.sqrt(2))  # more CPUs are never thought to do harm
    alone = [Run(1, 100, 100.0)] * 2
    shared = predict(alone, 4, 100, Scaling(parallel=0.8))
    assert shared
    assert shared.likely == pytest.approx(40)
    bounded = predict(alone, 4, 100, Scaling(parallel=0.8, cpus=2))
    assert bounded
    assert bounded.likely == pytest.approx(60)
    untold = predict(alone, 4, 100)
    assert untold
    assert untold.likely == pytest.approx(100)


def test_cpus_that_did_not_help_are_named() -> None:
    two, four, eight = ([Run(cpus, 100, seconds)] * 6 for cpus, seconds in ((2, 60.0), (4, 59.0), (8, 30.0)))
    assert hint([*two, *four], 4) == "4 CPUs were not faster than 2 in 6 earlier runs."
    assert hint([*two, *four], 8) == "4 CPUs were not faster than 2 in 6 earlier runs."
    assert hint([*two, *four, *eight], 8) == ""  # these help
    assert hint([*two, *four], 2) == ""
    assert hint([*two, *four[:2]], 4) == ""  # too few to say so


def test_what_the_template_says_of_cpus_counts_where_runs_do_not() -> None:
    serial = Scaling(parallel=0, note="All of it uses one.")
    assert hint([], 8, serial) == "8 CPUs are hardly faster than 1, says the template. All of it uses one."
    assert hint([], 1, serial) == ""
    capped = Scaling(parallel=0.9, cpus=6)
    assert hint([], 8, capped) == "8 CPUs are hardly faster than 6, says the template."
    assert hint([], 6, capped) == ""
    half = Scaling(parallel=0.5)
    assert hint([], 2, half) == ""  # a third faster
    assert hint([], 64, half) == "64 CPUs are hardly faster than 16, says the template."
    one, two = [Run(1, 100, 60.0)] * 3, [Run(2, 100, 30.0)] * 3
    assert hint(one, 2, serial) == hint([], 2, serial)
    assert hint([*one, *two], 2, serial) == ""  # they have been faster, whatever the template says


@given(st.floats(0, 1), st.none() | st.integers(1, 64), st.integers(1, 256))
def test_a_template_names_fewer_cpus_only_where_these_do_as_well(
    parallel: float, most: int | None, cpus: int
) -> None:
    scaling = Scaling(parallel=parallel, cpus=most)
    said = re.match(rf"{cpus} CPUs are hardly faster than (\d+), says", hint([], cpus, scaling))
    if said:
        found = [predict([Run(1, 1, 1.0)], count, 1, scaling) for count in (int(said[1]), cpus)]
        assert int(said[1]) < cpus
        assert found[0]
        assert found[1]
        assert found[0].likely <= 1.05 * found[1].likely * (1 + 1e-9)
    else:
        assert most is None or cpus <= most


def test_runs_on_fewer_frames_are_not_taken_for_faster_ones() -> None:
    runs = [Run(cpus, frames, frames / cpus) for cpus, frames in ((2, 100), (2, 200), (2, 400)) for _ in "ab"]
    runs += [Run(4, 1600, 400.0)] * 3
    assert hint(runs, 4) == ""


@given(RUNS, st.integers(1, 64), st.integers(0, 10_000), st.floats(0.1, 10))
def test_a_spread_is_one_and_time_has_no_unit(runs: list[Run], cpus: int, frames: int, factor: float) -> None:
    found = predict(runs, cpus, frames)
    assert found
    assert 0 < found.low <= found.likely <= found.high < math.inf
    again = predict([Run(run.cpus, run.frames, run.seconds * factor) for run in runs], cpus, frames)
    assert again
    assert again.likely == pytest.approx(found.likely * factor, rel=1e-6)


@given(RUNS, st.integers(1, 64), st.integers(1, 10_000), st.integers(1, 10_000))
def test_more_frames_never_take_less(runs: list[Run], cpus: int, frames: int, more: int) -> None:
    few, many = predict(runs, cpus, frames), predict(runs, cpus, frames + more)
    assert few
    assert many
    assert many.likely >= few.likely * (1 - 1e-9)


def test_a_job_waits_for_those_before_it() -> None:
    assert wait(2, [], [], 2) == 0
    assert wait(1, [(1, 30.0)], [], 2) == 30
    assert wait(0, [(1, 30.0), (1, 50.0)], [(1, 100.0)], 1) == 50
    assert wait(2, [(2, 10.0)], [(4, 60.0)], 1) == 70  # nobody overtakes the large one
    assert wait(2, [], [], 3) == math.inf


QUEUES = st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1000)), max_size=8)


@given(QUEUES, QUEUES, st.integers(1, 4))
def test_waiting_ends_when_all_before_have_ended(
    running: list[tuple[int, float]], ahead: list[tuple[int, float]], cpus: int
) -> None:
    free = 4
    seconds = wait(free, running, ahead, cpus)
    assert 0 <= seconds <= max((left for _, left in running), default=0) + sum(time for _, time in ahead)
    assert wait(free, running, [*ahead, (4, 10.0)], cpus) >= seconds

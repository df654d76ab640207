"""`regrow.measure.timing`: real functions in turns, and a look at a machine that is made busy."""

import os
import subprocess
import sys
import time

import pytest

from regrow.errors import RegrowValueError
from regrow.measure.timing import Timing, Watch, interleaved, load


def test_ways_take_turns_and_each_is_warmed_up() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: (calls.append(name), time.sleep(0.025)) for name in "ab"}
    found = interleaved(ways, seconds=0, rounds=2)
    assert "".join(calls) == "aabb" + "abab"
    assert [timing.runs for timing in found.values()] == [2, 2]
    assert all(timing.low >= 0.025 for timing in found.values())


def test_the_first_call_of_a_turn_is_left_out() -> None:
    calls: list[int] = []
    found = interleaved({"short": lambda: (calls.append(1), time.sleep(0.003))}, seconds=0, rounds=3)
    assert found["short"].runs == len(calls) - 2 - 3


def test_median_and_quartiles() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (timing.low, timing.median, timing.high, timing.runs) == (2.0, 3.0, 4.0, 5)
    assert timing.spread == pytest.approx(2 / 3)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize("wrong", [{"seconds": -1}, {"rounds": 0}])
def test_bad_input(wrong: dict) -> None:
    with pytest.raises(RegrowValueError, match=next(iter(wrong))):
        interleaved({"way": time.time}, **wrong)
    with pytest.raises(RegrowValueError, match="`ways`"):
        interleaved({})


SPIN = "import time\nwhile time.process_time() < 0.4: pass"


def test_others_are_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.2)
        seen = load(1.0)
        other.kill()
    assert seen.others * seen.cores > 0.2
    assert not seen.quiet or seen.cores > 4
    assert f"load {seen.average:.2f} on {seen.cores} cores" in str(seen)


def test_children_that_have_ended_are_not_others() -> None:
    watch, start = Watch(), time.perf_counter()
    children = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)]
    for child in children:
        child.wait()
    seen, elapsed = watch.load(), time.perf_counter() - start
    assert seen.others < 1.05 - 0.4 / elapsed  # what they used is no longer there for others

"""Memory of large outputs: used again, never while a tensor needs it, and given back."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

import regrow
from regrow.ops import native
from regrow.ops.tiles import geometry_of, tile, untile

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the kernels were not built"),
    pytest.mark.skipif(
        "ASAN_OPTIONS" in os.environ, reason="the address sanitizer watches over memory itself"
    ),
]

MEGABYTE = 2**20


def images(megabytes: int, value: float = 1.0) -> Tensor:
    """So large that their tiles take a little less than so many megabytes."""
    return torch.full((16, 16 * megabytes, 32, 32), value)[..., :31, :31].contiguous()


def tiles(megabytes: int, value: float = 1.0) -> Tensor:
    return tile(images(megabytes, value), 0)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    regrow.empty_cache()


def test_memory_is_used_again_for_outputs_of_about_that_size() -> None:
    first = tiles(20)
    address = first.data_ptr()
    assert address % 64 == 0
    del first
    for size in (20, 19, 18, 20):
        assert tiles(size).data_ptr() == address
    assert tiles(12).data_ptr() != address
    assert tiles(30).data_ptr() != address


def test_memory_stays_with_a_tensor_while_a_view_of_it_lives() -> None:
    given = images(4, 3.0)
    view = tile(given, 0)[0, 1]
    others = [tiles(4, float(k)) for k in range(3)]
    assert torch.all(view[: 31 * 31] == 3)
    assert len({view.untyped_storage().data_ptr(), *(other.data_ptr() for other in others)}) == 4
    assert all(torch.all(other[:, :, : 31 * 31] == k) for k, other in enumerate(others))
    assert torch.equal(untile(tile(given, 0), geometry_of(given, 0)), given)


def test_the_memory_of_an_output_can_be_changed_shared_and_saved(tmp_path: Path) -> None:
    output = tiles(2)
    expected = output.clone()
    torch.save(output, tmp_path / "output.pt")
    assert torch.equal(torch.load(tmp_path / "output.pt"), expected)
    assert torch.equal(output.share_memory_(), expected)
    del output
    output = tiles(2)
    output.set_(torch.zeros(3))
    assert torch.equal(tiles(2), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_given_back_on_demand_and_when_it_is_not_used_again() -> None:
    given, small = images(64), images(2)
    before = resident()
    tile(given, 0)
    assert resident() - before > 60 * MEGABYTE
    regrow.empty_cache()
    assert resident() - before < 8 * MEGABYTE
    tile(given, 0)
    for _ in range(1000):
        tile(small, 0)
    assert resident() - before > 60 * MEGABYTE
    for _ in range(100):
        tile(small, 0)
    assert resident() - before < 8 * MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_outputs_of_ever_other_sizes_do_not_pile_up() -> None:
    given = [images(size) for size in (16, 20, 24, 28, 32, 37, 42, 48)]
    before = resident()
    for each in given:
        tile(each, 0)
    assert resident() - before < 80 * MEGABYTE


def test_threads_take_and_give_at_once() -> None:
    def work(number: int) -> bool:
        kept: list[tuple[int, Tensor]] = []
        right = True
        for turn in range(40):
            size = 2 + (number + turn) % 3
            kept.append((turn, tiles(size, float(100 * number + turn))))
            if len(kept) > 3:
                made, oldest = kept.pop(0)
                right &= bool((oldest[:, :, : 31 * 31] == 100 * number + made).all())
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def _in_a_child(address: int) -> bool:
    return tiles(8, 5.0).data_ptr() == address and bool((tiles(8, 6.0)[:, :, : 31 * 31] == 6).all())


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_its_own() -> None:
    kept, dropped = tiles(8, 1.0), tiles(8, 2.0)
    address = dropped.data_ptr()
    del dropped
    stop = Event()

    def busy() -> None:
        while not stop.is_set():
            tiles(2)

    with ThreadPoolExecutor(1) as thread:  # which holds the lock at some of the forks
        running = thread.submit(busy)
        try:
            with get_context("fork").Pool(16) as pool:
                assert all(pool.map_async(_in_a_child, [address] * 32).get(timeout=60))
        finally:
            stop.set()
        running.result()
    assert torch.all(kept[:, :, : 31 * 31] == 1)
    assert tiles(8).data_ptr() == address

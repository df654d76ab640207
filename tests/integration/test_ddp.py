"""Two processes of DistributedDataParallel (gloo over loopback) train as one does on the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration import processes
from integration.loops import METHODS, OPTIMIZERS, STORAGES, History, assert_same, network, plain
from integration.processes import STEPS, data, run

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without gloo",
)


def assert_bit_for_bit(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_bit_for_bit(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_bit_for_bit(a, b, f"{where}.{index}")
    elif isinstance(one, torch.Tensor):
        # as bytes: nan equals itself, and 0 is not -0
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), where
    else:
        assert one == other, where


def history(result: dict[str, Any]) -> History:
    return History(torch.nn.Identity(), *(result[key] for key in ("masks", "weights", "updates")))


def alone(storage: str, method: str, optimizer: str = "sgd", accumulate: int = 1) -> History:
    model = network(storage)
    driven = OPTIMIZERS[optimizer](model)
    attached = processes.attach(method, model, driven)
    return plain(model, driven, attached, data(torch.float64, accumulate), accumulate=accumulate)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_agree_bit_for_bit_in_float32(method: str, storage: str, tmp_path: Path) -> None:
    one, other = run(processes.train, tmp_path, storage, method, "adamw", torch.float32, 2)
    assert len(one["updates"]) == STEPS // 2 - 1
    assert_bit_for_bit(one, other)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("optimizer", "accumulate"), [("sgd", 1), ("adamw", 3)])
def test_two_processes_train_as_one_on_the_whole_batch(
    method: str, storage: str, optimizer: str, accumulate: int, tmp_path: Path
) -> None:
    one, other = run(processes.train, tmp_path, storage, method, optimizer, torch.float64, accumulate)
    assert_bit_for_bit(one, other)
    assert_same(alone(storage, method, optimizer, accumulate), history(one))


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_are_views_of_ddps_buckets(storage: str, tmp_path: Path) -> None:
    one, other = run(_bucket_view, tmp_path, storage)
    assert_bit_for_bit(one, other)
    assert_same(alone(storage, "rigl"), history(one))


def _bucket_view(rank: int, storage: str) -> dict[str, Any]:
    return processes.train(rank, storage, "rigl", gradient_as_bucket_view=True)


@pytest.mark.parametrize("storage", STORAGES)
def test_topologies_that_differ_are_refused(storage: str, tmp_path: Path) -> None:
    for message in run(processes.other_seeds, tmp_path, storage):
        assert message == (
            "the processes hold different topologies: `0.weight` in process 1; `2.weight` in process 1; `4.weight` in "
            "process 1 differs from process 0.\nCall regrow.sparsify with the same seed in each."
        )


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (["0", "2"], ["0"], "train different sparse layers: their number is, in process 0 2, process 1 1.\n"),
        (None, ["0"], "train different sparse layers: their number is, in process 0 0, process 1 1.\n"),
        (["0", "2"], ["0", "4"], "train different sparse layers: `"),
    ],
)
def test_other_layers_are_refused_on_all(one: Any, other: Any, said: str, tmp_path: Path) -> None:
    messages = run(processes.other_layers, tmp_path, [one, other])
    for message, mine in zip(messages, ("2.weight", "4.weight"), strict=True):
        assert message.startswith(f"the processes {said}")
        if one and len(one) == len(other):
            assert message.startswith(f"the processes {said}{mine}` in process 1 differs from process 0.\n")


PARTED = {
    # what is different, at which step that is found, and what is said
    "schedule": (
        2,
        "do not update the topology alike: process 0: step 2, fraction 0.5; process 1: step 2, ",
    ),
    "length": (
        2,
        "alike: process 0: step 3, next update 4; process 1: step 3, next update -1.\nGive each the same",
    ),
    "no DDP": (
        2,
        "` in process 1 differs from process 0.\nTrain through DistributedDataParallel, which gives",
    ),
    "topology": (
        4,
        "the processes hold different topologies: `2.weight` in process 1 differs from process 0.\n",
    ),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", PARTED)
def test_processes_that_part_are_found_at_the_next_update(
    method: str, storage: str, how: str, tmp_path: Path
) -> None:
    expected, said = PARTED[how]
    for step, message in run(processes.parted, tmp_path, storage, method, how):
        assert step == expected
        assert said in message


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("set", {"seed": 0}, {"seed": 1}),  # would grow other connections in each
        (
            "rigl",
            {"total_steps": 100},
            {"total_steps": 101},
        ),  # would wait for an update that the other does not make
    ],
)
def test_methods_that_differ_are_refused(method: str, one: dict, other: dict, tmp_path: Path) -> None:
    for message, mine in zip(
        run(processes.other_arguments, tmp_path, method, [one, other]), [one, other], strict=True
    ):
        assert "the processes drive the model by different methods" in message
        assert all(f"'{key}': {value}" in message for key, value in mine.items())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("include", [["trunk", "branch"], ["branch"]], ids=["one of two", "the only one"])
def test_a_layer_that_one_process_alone_reaches(
    method: str, storage: str, include: list[str], tmp_path: Path
) -> None:
    one, other = run(processes.branches, tmp_path, storage, method, include)
    assert_bit_for_bit(one, other)
    expected = processes.branches_alone(storage, method, include)
    assert_same(expected, history(one))


@pytest.mark.parametrize("storage", STORAGES)
def test_ddp_does_not_broadcast_the_topology(storage: str, tmp_path: Path) -> None:
    for counts in run(processes.ignored, tmp_path, storage):
        assert counts == {"broadcast": 3, "buffers": 3}  # batch norm's


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sparse_part_of_what_ddp_wraps(storage: str, tmp_path: Path) -> None:
    one, other = run(processes.inside_another, tmp_path, storage)
    assert one["warnings"] == []
    assert_bit_for_bit(one, other)

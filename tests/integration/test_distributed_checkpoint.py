"""torch.distributed.checkpoint, which reads only what the state dict that it is given to fill has too."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from integration.loops import METHODS, OPTIMIZERS, STORAGES, UPDATES, assert_same, batches, network, plain
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import regrow

STEPS, HALF = 20, 10
NESTED, FLAT = (StateDictOptions(flatten_optimizer_state_dict=flat) for flat in (False, True))

pytestmark = [
    # one process is meant
    pytest.mark.filterwarnings(
        "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"
    ),
    pytest.mark.parametrize("optimizer", OPTIMIZERS),
    pytest.mark.parametrize("storage", STORAGES),
    pytest.mark.parametrize("method", METHODS),
]


def start(storage: str, optimizer: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(storage, seed=seed)
    return model, OPTIMIZERS[optimizer](model)


def attach(method: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> regrow.Method:
    return METHODS[method](model, optimizer, total_steps=STEPS, **UPDATES)


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, options: StateDictOptions) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, options: StateDictOptions) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )


@pytest.mark.parametrize("options", [NESTED, FLAT], ids=["nested", "flat"])
def test_a_round_trip_gives_the_undisturbed_run(
    method: str, storage: str, optimizer: str, options: StateDictOptions, tmp_path: Path
) -> None:
    data = batches(STEPS)
    model, driven = start(storage, optimizer)
    undisturbed = plain(model, driven, attach(method, model, driven), data)

    model, driven = start(storage, optimizer)
    plain(model, driven, attach(method, model, driven), data[:HALF])
    save(model, driven, tmp_path, options)

    # another topology at first, so that nothing but the checkpoint can have brought back the right one
    model, driven = start(storage, optimizer, seed=99)
    continued = attach(method, model, driven)
    load(model, driven, tmp_path, options)
    assert continued.step == HALF
    assert_same(undisturbed, plain(model, driven, continued, data[HALF:]), start=HALF, tolerance=0)


def test_a_method_attached_after_loading_continues(
    method: str, storage: str, optimizer: str, tmp_path: Path
) -> None:
    """The whole checkpoint is read here: one filled in place knows nothing of a method that is not there yet."""
    data = batches(STEPS)
    model, driven = start(storage, optimizer)
    undisturbed = plain(model, driven, attach(method, model, driven), data)

    model, driven = start(storage, optimizer)
    plain(model, driven, attach(method, model, driven), data[:HALF])
    save(model, driven, tmp_path / "folder", NESTED)
    dcp_to_torch_save(tmp_path / "folder", tmp_path / "file")

    model, driven = start(storage, optimizer, seed=99)
    state = torch.load(tmp_path / "file", weights_only=True)
    set_state_dict(model, driven, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    continued = attach(method, model, driven)
    assert continued.step == HALF
    assert_same(undisturbed, plain(model, driven, continued, data[HALF:]), start=HALF, tolerance=0)


@pytest.mark.parametrize("options", [NESTED, FLAT], ids=["nested", "flat"])
def test_a_running_model_goes_back(
    method: str, storage: str, optimizer: str, options: StateDictOptions, tmp_path: Path
) -> None:
    """Whoever goes back to a checkpoint after a loss that exploded fills the tensors of the running model."""
    data = batches(STEPS)
    model, driven = start(storage, optimizer)
    undisturbed = plain(model, driven, attach(method, model, driven), data)

    model, driven = start(storage, optimizer)
    attached = attach(method, model, driven)
    plain(model, driven, attached, data[:HALF])
    save(model, driven, tmp_path, options)
    plain(model, driven, attached, batches(5)[::-1])
    load(model, driven, tmp_path, options)
    assert attached.step == HALF
    assert_same(undisturbed, plain(model, driven, attached, data[HALF:]), start=HALF, tolerance=0)

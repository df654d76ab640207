"""Formats have numbers: what has none still loads, bit for bit, and what is newer is refused before anything moves."""

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.make import described, driven, network, tickets_of, train
from safetensors.torch import load_file
from tiny import cli, write_folder, write_recipe
from torch import Tensor

import regrow
from regrow import _formats
from regrow.app.training import checkpoint
from regrow.app.training.folder import RunFolder
from regrow.errors import RegrowValueError

HERE = Path(__file__).parent
OLD = HERE / "without-number"
kinds = pytest.mark.parametrize("kind", ["sup", "free"])


def too_new(newest: int) -> str:
    """What is said of the format after the `newest`."""
    return (
        f"is of format {newest + 1}, and this regrow reads formats up to {newest}\n"
        "It was written by a newer regrow"
    )


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def through_a_file(state: Any) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@kinds
def test_states_without_a_number_load_bit_for_bit(kind: str) -> None:
    old = torch.load(OLD / f"{kind}.pt", weights_only=True)
    model, optimizer, tickets = driven(kind, seed=9)
    model.load_state_dict(old["model"])
    optimizer.load_state_dict(old["optimizer"])
    tickets.load_state_dict(old["tickets"])
    assert_same([described(each) for each in (model, *tickets_of(tickets))], old["expected"])
    state = optimizer.state_dict()
    assert state["param_groups"][0].pop("regrow_format") == _formats.OPTIMIZER
    assert state["param_groups"] == old["optimizer"]["param_groups"]
    for key, entries in old["optimizer"]["state"].items():
        assert entries.keys() == state["state"][key].keys()
        assert all(torch.equal(each, state["state"][key][name]) for name, each in entries.items())
    train(model, optimizer, tickets, 2)
    assert tickets.step == 11


def test_an_optimizer_loaded_before_its_method_continues_without_a_number() -> None:
    old = torch.load(OLD / "sup.pt", weights_only=True)
    model = network(seed=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.load_state_dict(old["model"])
    optimizer.load_state_dict(old["optimizer"])
    assert regrow.RigL(model, optimizer, total_steps=12, update_every=2).step == 9
    assert optimizer.param_groups[0]["regrow_format"] == _formats.OPTIMIZER


@pytest.mark.parametrize("into", ["sparse", "dense"])
def test_a_state_dict_and_a_file_without_a_number_load_by_regrow_load(into: str) -> None:
    old = torch.load(OLD / "free.pt", weights_only=True)
    for source in (old["model"], OLD / "model.safetensors"):
        model = network(seed=9)
        regrow.load(source, into=model if into == "sparse" else regrow.densify(model))
        assert_same([described(model)], old["expected"][:1])


@kinds
def test_numbers_are_written_and_go_through_a_file(kind: str) -> None:
    model, optimizer, tickets = driven(kind)
    train(model, optimizer, tickets, 5)
    states = through_a_file([part.state_dict() for part in (model, optimizer, tickets)])
    sparse = {name for name, own in states[0]._metadata.items() if own.get("regrow") == _formats.STATE_DICT}
    assert sparse == {"0", "1", "4"}
    assert states[1]["param_groups"][0]["regrow_format"] == _formats.OPTIMIZER
    assert states[2]["format"] == _formats.TICKETS
    other = driven(kind, seed=9)
    for part, state in zip(other, states, strict=True):
        part.load_state_dict(state)
    assert_same([described(model)], [described(other[0])])
    tickets.phases.method.detach()
    assert not [key for key in optimizer.param_groups[0] if key.startswith("regrow")]


def test_a_dense_state_dict_says_nothing_of_regrow() -> None:
    state: Any = regrow.dense_state_dict(network())
    assert not any("regrow" in own for own in state._metadata.values())


def newer(state: Any) -> Any:
    """The same state dict of a model in the format after the newest."""
    state = copy.copy(state)
    state._metadata = {
        name: {**own, "regrow": _formats.STATE_DICT + 1} for name, own in state._metadata.items()
    }
    return state


@pytest.mark.parametrize("part", [None, "4"])
def test_a_newer_state_dict_is_refused_before_anything_is_written(part: str | None) -> None:
    whole, source = network(), network(seed=9)
    model = whole if part is None else whole.get_submodule(part)
    state = newer((source if part is None else source.get_submodule(part)).state_dict())
    before = described(whole)
    with pytest.raises(RegrowValueError, match=f"the state dict {too_new(_formats.STATE_DICT)}"):
        model.load_state_dict(state)
    with pytest.raises(RegrowValueError, match=f"the state dict {too_new(_formats.STATE_DICT)}"):
        regrow.load(state, into=model)
    assert_same([described(whole)], [before])


def test_a_damaged_number_is_refused() -> None:
    state: Any = network().state_dict()
    state._metadata["4"]["regrow"] = "one"
    with pytest.raises(RegrowValueError, match="its format must be a number, got 'one'"):
        network().load_state_dict(state)


def test_newer_state_of_an_optimizer_is_refused() -> None:
    model, optimizer, tickets = driven("sup")
    train(model, optimizer, tickets, 3)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0] |= {"regrow_format": _formats.OPTIMIZER + 1, "regrow_step": 7}
    with pytest.raises(RegrowValueError, match=f"the optimizer's state {too_new(_formats.OPTIMIZER)}"):
        optimizer.load_state_dict(state)
    assert tickets.step == 3
    plain = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plain.load_state_dict(state)
    tickets.phases.method.detach()
    with pytest.raises(RegrowValueError, match=f"the optimizer's state {too_new(_formats.OPTIMIZER)}"):
        regrow.RigL(model, plain, total_steps=12)


@kinds
def test_newer_state_of_tickets_is_refused(kind: str) -> None:
    model, optimizer, tickets = driven(kind)
    train(model, optimizer, tickets, 5)
    state = {**tickets.state_dict(), "format": _formats.TICKETS + 1}
    with pytest.raises(RegrowValueError, match=f"`state` {too_new(_formats.TICKETS)}"):
        driven(kind)[2].load_state_dict(state)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content = (OLD / "model.safetensors").read_bytes()
    assert content.count(b'"regrow":"1"') == 1
    newest = _formats.MODEL_FILE
    file.write_bytes(content.replace(b'"regrow":"1"', f'"regrow":"{newest + 1}"'.encode()))
    with pytest.raises(
        RegrowValueError,
        match=f"in format {newest}, got format {newest + 1}\nA newer format needs a newer regrow",
    ):
        regrow.load(file, into=network())


def without_number(run: Path) -> None:
    """Take the numbers out of a run folder, which leaves what was written before there were any."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state.pop("format") == _formats.CHECKPOINT
    for name in ("model", "optimizer"):
        state[name] = copy.copy(state[name])
    for own in state["model"]._metadata.values():
        own.pop("regrow", None)
    assert state["optimizer"]["param_groups"][0].pop("regrow_format") == _formats.OPTIMIZER
    torch.save(state, run / "checkpoint.pt")


def test_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, whole, cut = write_recipe(tmp_path), tmp_path / "whole", tmp_path / "cut"
    assert cli(capsys, "train", recipe, f"out={whole}").code == 0
    assert json.loads((whole / "summary.json").read_text())["format"] == _formats.SUMMARY
    assert cli(capsys, "train", recipe, f"out={cut}").code == 0
    for name in ("summary.json", "summary.txt", "model.safetensors"):  # as if killed at the last moment
        (cut / name).unlink()
    without_number(cut)
    assert cli(capsys, "train", "--resume", cut).code == 0
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    summary = json.loads((whole / "summary.json").read_text())
    (whole / "summary.json").write_text(json.dumps({**summary, "format": _formats.SUMMARY + 1}))
    with pytest.raises(RegrowValueError, match=too_new(_formats.SUMMARY)):
        RunFolder.open(whole).summary()
    state = torch.load(cut / "checkpoint.pt", weights_only=True)
    torch.save({**state, "format": _formats.CHECKPOINT + 1}, cut / "checkpoint.pt")
    (cut / "summary.json").unlink()
    assert too_new(_formats.CHECKPOINT).splitlines()[0] in cli(capsys, "train", "--resume", cut).err


def test_a_run_folder_of_each_number_is_read_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = range(1, _formats.CHECKPOINT + 1)
    assert [*checkpoint.READERS] == [*numbers]
    write_folder(tmp_path / "images")  # where the recipe looks for it
    monkeypatch.chdir(tmp_path)
    for number in numbers:
        run = tmp_path / f"run-{number}"
        shutil.copytree(HERE / f"number-{number}/run", run)
        summary = RunFolder.open(run).summary()
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        assert (summary["format"], state["format"]) == (number, number)
        for name in ("summary.json", "summary.txt", "model.safetensors"):  # as if killed at the last moment
            (run / name).unlink()
        assert cli(capsys, "train", "--resume", run).code == 0
        wanted, found = (
            load_file(path / "model.safetensors") for path in (HERE / f"number-{number}/run", run)
        )
        assert_same([found], [wanted])
        assert RunFolder.open(run).summary()["connections"] == summary["connections"]

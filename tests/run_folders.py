"""Runs of `regrow train` that tests interrupt and compare."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

OWN = Path(__file__).parent / "own_parts.py"
LOGS = ("metrics.jsonl", "maps.jsonl")


def records(run: Path, log: str) -> list[dict]:
    """The records of a log without the times, which no two runs share."""
    lines = (run / log).read_text().splitlines() if (run / log).exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, topology, optimizer state, generators and logs, all bit for bit."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for log in LOGS:
        assert records(one, log) == records(other, log)
    left, right = (torch.load(run / "checkpoint.pt") for run in (one, other))
    assert torch.equal(left["random"]["torch"], right["random"]["torch"])
    for key, state in left["optimizer"]["state"].items():
        for name, value in state.items():
            both = (value, right["optimizer"]["state"][key][name])
            one_state, other_state = (each if isinstance(each, dict) else {"": each} for each in both)
            assert one_state.keys() == other_state.keys()
            for part, each in one_state.items():
                assert torch.equal(torch.as_tensor(each), torch.as_tensor(other_state[part])), (name, part)


def signalled(monkeypatch, tmp_path: Path, at: int, name: str) -> None:
    monkeypatch.setenv("SIGNAL_AT", str(at))
    monkeypatch.setenv("SIGNAL", name)
    monkeypatch.setenv("SIGNALLED", str(tmp_path / "happened"))

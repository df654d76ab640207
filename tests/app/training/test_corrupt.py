"""Run folders that are damaged, or of another's making: each has its answer, and nothing in them is changed or run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corrupt import answers, check, serve
from safetensors.torch import save_file
from tiny import write_recipe
from torch import nn

from regrow.app.cli.main import main
from regrow.app.training.finished import Finished

Make = Callable[[Path], Any]


class Evil:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


def checkpoint(change: Make) -> Make:
    """A run that is not finished, whose file ``checkpoint.pt`` is changed."""

    def make(run: Path) -> None:
        for name in ("summary.json", "summary.txt"):
            (run / name).unlink()
        change(run / "checkpoint.pt")

    return make


def state(change: Make) -> Make:
    """A checkpoint as it is read, changed and written again."""

    def make(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        other = change(content)
        torch.save(content if other is None else other, path)

    return checkpoint(make)


def replaced(make: Make) -> Make:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return checkpoint(change)


def part(name: str, **changes: Any) -> Make:
    return state(lambda content: content[name].update(changes))


def raw(content: bytes) -> Make:
    return checkpoint(lambda path: path.write_bytes(content))


def resized(content: dict[str, Any]) -> None:
    content["model"]["layers.0.bias"] = torch.zeros(7)


def other_optimizer(content: dict[str, Any]) -> None:
    content["optimizer"]["param_groups"][0]["params"].pop()


CUT = r"cannot read checkpoint .*checkpoint.pt: it is cut or damaged\nCopy the whole run folder again"
MORE = r"checkpoint.pt: it holds more than tensors and plain values, which is never run, or is damaged\nCopy"
CHECKPOINTS: dict[str, tuple[Make, str]] = {
    "resume-empty": (raw(b""), r"checkpoint.pt: it is empty\nCopy the whole run folder again, or delete"),
    "resume-cut": (checkpoint(lambda path: path.write_bytes(path.read_bytes()[:-500])), CUT),
    "resume-half": (
        checkpoint(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
        CUT,
    ),
    "resume-zeros": (raw(bytes(5000)), MORE + "|" + CUT),
    "resume-text": (raw(b"version https://git-lfs.github.com/spec/v1\n"), MORE + "|" + CUT),
    "resume-payload": (raw(pickle.dumps(Evil(), 2)), MORE),
    "resume-payload-inside": (state(lambda content: content.update(losses=[Evil()])), MORE),
    "resume-module": (replaced(lambda path: torch.save(nn.Linear(3, 3), path)), MORE),
    "resume-pipe": (replaced(os.mkfifo), r"checkpoint.pt: it is not a file\nCopy the whole run folder"),
    "resume-dangling": (
        replaced(lambda path: path.symlink_to("nowhere")),
        r"checkpoint.pt: it is not a file\nCopy",
    ),
    "resume-folder": (replaced(Path.mkdir), r"checkpoint.pt: it is not a file\nCopy the whole run folder"),
    "resume-list": (
        state(lambda content: [1, 2]),
        r"checkpoint.pt: it holds a list, and no parts by name\nCopy",
    ),
    "resume-tensor": (
        state(lambda content: torch.zeros(3)),
        r"checkpoint.pt: it holds a Tensor, and no parts",
    ),
    "resume-state-dict": (
        state(lambda content: dict(content["model"])),
        r"checkpoint.pt: it is the state dict of a model: `model` is missing or of another type\nCopy",
    ),
    "resume-no-model": (
        state(lambda content: content.__delitem__("model")),
        r"it is not a checkpoint of a run: `model` is missing or of another type\nCopy",
    ),
    "resume-model-list": (
        state(lambda content: content.update(model=[])),
        r"`model` is missing or of another type",
    ),
    "resume-no-logs": (
        state(lambda content: content.__delitem__("logs")),
        r"`logs` is missing or of another type",
    ),
    "resume-logs": (
        part("logs", **{"metrics.jsonl": "long"}),
        r"`logs` must say how long 'metrics.jsonl' is\nCopy",
    ),
    "resume-status": (
        part("status", mood="fine"),
        r"`status` must hold numbers for accuracy, ece, loss, .*\nCopy",
    ),
    "resume-step": (part("status", step=10**9), r"`status` is at step 1000000000, allowed is 0 .. 20\nCopy"),
    "resume-losses": (state(lambda content: content.update(losses=["a"])), r"`losses` must be numbers\nCopy"),
    "resume-other-model": (
        state(resized),
        r"`model` in the checkpoint does not fit the recipe .*\nThe recipe, the",
    ),
    "resume-no-mask": (
        state(lambda content: content["model"].__delitem__("layers.0.weight_mask")),
        r"`model` in the checkpoint does not fit the recipe .*: the topology of `layers.0.weight` is missing\n",
    ),
    "resume-other-optimizer": (
        state(other_optimizer),
        r"`optimizer` in the checkpoint does not fit the recipe",
    ),
    "resume-random": (
        part("random", torch=torch.zeros(3)),
        r"`random` in the checkpoint does not fit the recipe",
    ),
    "resume-no-random": (
        state(lambda content: content["random"].__delitem__("python")),
        r"`random` in the checkpoint does not fit the recipe of the run \(config.yaml\): 'python'\nThe",
    ),
}


def written(name: str, content: bytes) -> Make:
    return lambda run: (run / name).write_bytes(content)


def changed(name: str, old: str, new: str) -> Make:
    def make(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return make


FOLDERS: dict[str, tuple[Make, str]] = {
    "resume-no-config": (
        lambda run: (run / "config.yaml").unlink(),
        r"holds no run: it has no config.yaml\nGive",
    ),
    "finished-config": (
        written("config.yaml", b"\x80\xff"),
        r"config.yaml is no YAML: .*\nGive the YAML file",
    ),
    "finished-config-empty": (
        written("config.yaml", b""),
        r"config.yaml must hold a mapping of keys to values",
    ),
    "finished-config-climbs": (
        changed("config.yaml", "name: tiny", "name: ../tiny"),
        r"`name` must be a plain name .*, got '../tiny'\nTake out slashes",
    ),
    "finished-config-imports": (
        changed("config.yaml", "imports: []", "imports: [/nowhere/x.py]"),
        r"`--import` /nowhere/x.py: no such file\nFiles that a recipe imports",
    ),
    "resume-summary": (
        written("summary.json", b'{"recipe": "ti'),
        r"cannot read .*summary.json: it is damaged\nCopy",
    ),
    "resume-summary-other": (
        written("summary.json", b"[1]"),
        r"summary.json is not a summary of a run: `recipe` is",
    ),
    "resume-summary-deep": (
        written("summary.json", b"[" * 100_000),
        r"cannot read .*summary.json: it is damaged",
    ),
    "finished-summary": (
        written("summary.json", b"{}"),
        r"summary.json is not a summary of a run: `recipe` is missing",
    ),
    "finished-model-cut": (
        lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9]),
        r"model.safetensors cannot be read: .*\nIt must be a safetensors file",
    ),
    "finished-model-dense": (
        lambda run: save_file({"a": torch.zeros(1)}, run / "model.safetensors"),
        r"model.safetensors does not fit the network that the recipe of the run names: .*\nCopy the whole run",
    ),
    "finished-model-other": (
        changed("config.yaml", "hidden: [32, 16]", "hidden: [32, 17]"),
        r"`into` must hold `layers.2.weight` of shape \(16, 32\), got \(17, 32\)\nBuild `into`",
    ),
}
CASES = {**CHECKPOINTS, **FOLDERS}


def read_run(folder: Path) -> None:
    """Resume the run in `folder`, or read it as a finished one."""
    if folder.name.startswith("resume"):
        main(["train", "--resume", str(folder)])
    else:
        Finished(folder).network()


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(root)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe), f"out={root / 'run'}", "steps=20", "sparsify.storage=masked"])
    assert not ended.value.code

    def copied(make: Make) -> Make:
        def copy(folder: Path) -> None:
            shutil.copytree(root / "run", folder, dirs_exist_ok=True)
            make(folder)

        return copy

    made = {name: copied(make) for name, (make, _) in CASES.items()}
    return answers(__file__, made, tmp_path_factory.mktemp("corrupt"))


@pytest.mark.parametrize("case", CASES)
def test_a_run_folder_that_is_corrupt_has_its_answer(answered, case):
    check(answered.get(case), CASES[case][1])


if __name__ == "__main__":
    serve(read_run)

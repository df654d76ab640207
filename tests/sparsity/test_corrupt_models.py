"""Models and state dicts that are damaged: each has its answer, and nothing of the model is written before."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from corrupt import answers, check, serve
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import regrow
from regrow.weights import sparse_weights

Change = Callable[[dict[str, Tensor], dict[str, str]], Any]
CROW, COL, VALUES = "0.weight_crow", "0.weight_col", "0.weight_values"


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 6))


def sparse(storage: str = "compressed", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return regrow.sparsify(build(), 0.8, storage=storage, seed=seed)


def file(change: Change, *, checksum: bool = False) -> Callable[[Path], None]:
    """A file of `save` with its tensors and metadata changed; without a `checksum`, as one of before."""

    def make(folder: Path) -> None:
        path = regrow.save(sparse(), folder / "model.safetensors")
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if not checksum:
            del metadata["checksum"]
        change(tensors, metadata)
        save_file(tensors, path, metadata=metadata)

    return make


def put(key: str, value: Callable[[Tensor], Tensor], **options: bool) -> Callable[[Path], None]:
    return file(lambda tensors, _: tensors.update({key: value(tensors[key]).contiguous()}), **options)


def drop(*names: str) -> Callable[[Path], None]:
    return file(lambda tensors, _: [tensors.pop(name) for name in names])


def layer(**changes: Any) -> Callable[[Path], None]:
    def change(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        layers = json.loads(metadata["layers"])
        layers["0.weight"] |= changes
        metadata["layers"] = json.dumps(layers)

    return file(change)


def layers(text: str) -> Callable[[Path], None]:
    return file(lambda _, metadata: metadata.update(layers=text))


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = regrow.save(sparse(), folder / "model.safetensors")
        path.write_bytes(change(path.read_bytes()))

    return make


def repeated(col: Tensor) -> Tensor:
    return torch.cat([col[1:2], col[1:]])


FILES = {
    "model-empty": (
        raw(lambda content: b""),
        r"model.safetensors cannot be read: .*\nIt must be a safetensors",
    ),
    "model-cut": (raw(lambda content: content[:-100]), r"cannot be read: .*\nIt must be a safetensors"),
    "model-header": (
        raw(lambda content: b"\xff" * 8 + content[8:]),
        r"cannot be read: .*\nIt must be a safete",
    ),
    "model-pipe": (
        lambda folder: os.mkfifo(folder / "model.safetensors"),
        r"read: it is not an ordinary file\nIt",
    ),
    "model-folder": (
        lambda folder: (folder / "model.safetensors").mkdir(),
        r"read: it is not an ordinary file\nIt",
    ),
    "model-value": (
        put("0.bias", lambda bias: bias + 1, checksum=True),
        r"was changed after it was written: its checksum is .*\nCopy or fetch it again",
    ),
    "model-column": (put(COL, lambda col: col.flip(0), checksum=True), r"was changed after it was written"),
    "model-type": (
        put("3.bias", lambda bias: bias.view(torch.int32), checksum=True),
        r"was changed after it",
    ),
    "model-metadata": (
        file(lambda _, metadata: metadata.update(cheksum="0")),
        r"unknown metadata \['cheksum'\]",
    ),
    "model-format": (
        file(lambda _, metadata: metadata.update(regrow="2")),
        r"in format 1, got format 2\nA newer",
    ),
    "model-no-crow": (drop(CROW), r"`0.weight_crow` is missing: .*\nLoad them together"),
    "model-no-index": (drop(CROW, COL), r"`0.weight_crow` is missing: .*\nLoad them together"),
    "model-no-weight": (
        drop(CROW, COL, VALUES),
        r"`0.weight_crow` is missing: `file` names `0.weight` as sparse",
    ),
    "model-no-bias": (drop("3.bias"), r"of another architecture than the file: 3.bias differ\nBuild `into`"),
    "model-storage": (
        layer(storage="zip"),
        r"storage of `0.weight` must be one of masked, compressed, got 'zip'",
    ),
    "model-no-storage": (
        layer(storage=None),
        r"storage of `0.weight` must be one of masked, compressed, got 'N",
    ),
    "model-shape": (layer(shape="abc"), r"damaged metadata: the shape of `0.weight` must be whole numbers"),
    "model-other-shape": (
        layer(shape=[12, 10]),
        r"`into` must hold `0.weight` of shape \(12, 10\), got \(10, 12\)",
    ),
    "model-no-json": (layers("{"), r"damaged metadata: `layers` is not JSON\nCopy or fetch it"),
    "model-deep-json": (layers("[" * 100_000), r"damaged metadata: `layers` is not JSON\nCopy or fetch it"),
    "model-list": (layers("[]"), r"damaged metadata: `layers` must be a dictionary of dictionaries"),
    "model-no-layers": (
        layers("{}"),
        r"`into` is sparse where the file is dense: .*\nLoad into a dense model",
    ),
    "model-gates": (layer(gates=3), r"damaged metadata: the gates of `0.weight` must share its rows evenly"),
    "model-gates-word": (layer(gates="four"), r"damaged metadata: the gates of `0.weight` must share its"),
    "model-index-type": (
        put(CROW, Tensor.float),
        r"`0.weight_crow` must hold whole numbers, got torch.float32",
    ),
    "model-index-bytes": (
        put(CROW, lambda crow: torch.cat([crow[:1], crow[1:].flip(0)]).to(torch.uint8)),
        r"`0.weight_crow` must be 11 ascending row pointers that start at 0",
    ),
    "model-index-range": (
        put(COL, lambda col: col + 2**30),
        r"`0.weight_col` must be in \[0, 12\), got 1073741",
    ),
    "model-index-wide": (
        put(COL, lambda col: col.long() + 2**32),
        r"`0.weight_col` must be in \[0, 12\), got 429",
    ),
    "model-index-order": (
        put(COL, repeated),
        r"`0.weight_col` must ascend within each row, without repetition",
    ),
    "model-index-end": (
        put(CROW, lambda crow: crow.long() * 2**40),
        r"`0.weight_col` must be \[n\] with n of at",
    ),
    "model-index-none": (
        put(CROW, lambda crow: crow[:0]),
        r"`0.weight_crow` must be 11 ascending row pointers",
    ),
    "model-values-type": (
        put(VALUES, Tensor.int),
        r"`0.weight_values` must hold floating-point numbers, got t",
    ),
    "model-values-complex": (
        put(VALUES, lambda values: values.to(torch.complex64)),
        r"`0.weight_values` must hold floating-point numbers, got torch.complex64",
    ),
    "model-bias-type": (
        put("0.bias", Tensor.int),
        r"`0.bias` must hold floating-point numbers, as in `into`, got",
    ),
}


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A state dict in a file of torch's, changed."""

    def make(folder: Path) -> None:
        content = dict(sparse().state_dict())
        change(content)
        torch.save(content, folder / "state.pt")

    return make


STATES = {
    "state-no-crow": (state(lambda s: s.pop(CROW)), r"`0.weight_crow` is missing: the state dict holds"),
    "state-no-col": (state(lambda s: s.pop(COL)), r"`0.weight_col` is missing: the state dict holds"),
    "state-no-values": (
        state(lambda s: s.pop(VALUES)),
        r"`0.weight_values` is missing: the state dict holds",
    ),
    "state-index-of-other": (
        state(lambda s: s.update({key: sparse(seed=1).state_dict()[key] for key in (CROW, COL)})),
        r"`0.weight_values` does not belong to `0.weight_crow` and `0.weight_col`|must be \[n, 1\]",
    ),
    "state-column-of-other": (
        state(lambda s: s.update({COL: sparse(seed=1).state_dict()[COL]})),
        r"`0.weight_values` does not belong to|must ascend within each row|must be \[n",
    ),
    "state-list": (
        state(lambda s: s.update({COL: [1, 2]})),
        r"`0.weight_col` must be an ordinary tensor, got list",
    ),
    "state-sparse": (
        state(lambda s: s.update({VALUES: s[VALUES].to_sparse()})),
        r"`0.weight_values` must be an ordinary tensor, got torch.sparse_coo\nConvert it with to_dense",
    ),
    "state-bools": (
        state(lambda s: s.update({CROW: s[CROW].bool()})),
        r"`0.weight_crow` must hold whole numbers",
    ),
}
CASES = {**FILES, **STATES}


def read(folder: Path) -> None:
    """Load what is in `folder` into models of all kinds; the last error stands, and the models must be untouched."""
    if folder.name.startswith("model"):
        models = [build(), sparse("masked", 3), sparse("compressed", 3)]
        loads = [lambda model: regrow.load(folder / "model.safetensors", model)]
    else:
        content = torch.load(folder / "state.pt")
        models = [sparse("masked", 3), sparse("compressed", 3)]
        loads = [
            lambda model: regrow.load(content, model),
            lambda model: model.load_state_dict(content, strict=False),
            lambda model: model.load_state_dict(content),
        ]
    errors: list[Exception] = []
    for model in models:
        for load in loads:
            before, kind = copy.deepcopy(dict(model.state_dict())), regrow.is_sparse(model)
            try:
                load(model)
            except regrow.RegrowError as error:
                errors.append(error)
            _require_untouched(model, before, kind)
    assert len(errors) == len(models) * len(loads), f"{len(errors)} of the loads were refused"
    raise errors[-1]


def _require_untouched(model: nn.Module, before: Mapping[str, Tensor], kind: bool) -> None:
    after = model.state_dict()
    assert regrow.is_sparse(model) == kind
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    made = {name: make for name, (make, _) in CASES.items()}
    return answers(__file__, made, tmp_path_factory.mktemp("corrupt"))


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_corrupt_has_its_answer(answered: dict[str, dict[str, Any]], case: str) -> None:
    check(answered.get(case), CASES[case][1])


def test_a_model_saved_twice_is_one_file(tmp_path: Path) -> None:
    content = {regrow.save(sparse(), tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}
    assert len(content) == 1


def test_any_bit_that_is_flipped_is_found(tmp_path: Path) -> None:
    path = regrow.save(sparse(), tmp_path / "model.safetensors")
    content = path.read_bytes()
    into = build()
    for at in range(0, len(content), max(1, len(content) // 150)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(regrow.RegrowError):
            regrow.load(path, into)
    assert not regrow.is_sparse(into)


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    file(lambda tensors, metadata: None)(tmp_path)
    loaded, x = regrow.load(tmp_path / "model.safetensors", build()).eval(), torch.randn(5, 12)
    torch.testing.assert_close(loaded(x), sparse().eval()(x))


def test_storage_may_be_said_for_each_weight() -> None:
    both = {"0.weight": "masked", "3.weight": "compressed"}
    model = regrow.sparsify(build(), 0.8, storage=both)
    assert {weight.name: weight.storage for weight in sparse_weights(model)} == both
    plain = build()
    with pytest.raises(
        regrow.RegrowError,
        match=r"`storage` must say masked or compressed for `3.weight`, got None\nGive one",
    ):
        regrow.sparsify(plain, 0.8, storage={"0.weight": "masked"})
    assert not regrow.is_sparse(plain)


if __name__ == "__main__":
    serve(read)

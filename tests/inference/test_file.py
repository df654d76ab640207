"""The file of a deployed network: small, the same bytes each time, refused with the reason where it is wrong."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corrupt import answers, check, serve
from inference.graphs import connections, small, sparse
from torch import Tensor

import regrow
from regrow import _formats
from regrow.errors import RegrowValueError
from regrow.inference import file
from regrow.inference.graph import Connections, Graph
from regrow.sparsity import sealed

precisions = pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])


def assert_same_graph(one: Graph, other: Graph) -> None:
    for name in (
        "inputs",
        "outputs",
        "signature",
        "structure",
        "nodes",
        "shapes",
        "dtypes",
        "dynamic",
        "precision",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert list(map(type, one.outputs)) == list(map(type, other.outputs))
    assert one.constants.keys() == other.constants.keys()
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.constants.items():
        assert torch.equal(tensor, other.constants[name]), name
    for name, weight in one.weights.items():
        again = other.weights[name]
        if isinstance(weight, Tensor):
            assert isinstance(again, Tensor)
            assert torch.equal(weight, again)
            continue
        assert isinstance(again, Connections)
        assert (weight.shape, weight.col.dtype) == (again.shape, again.col.dtype)
        assert weight.col.tolist() == again.col.tolist()
        for part in ("crow", "values", "scale"):
            one_, other_ = getattr(weight, part), getattr(again, part)
            assert one_ is other_ or torch.equal(one_, other_), part


@precisions
def test_what_is_written_is_read(tmp_path: Path, precision: str) -> None:
    graph = small(precision)
    path = file.write(tmp_path / "model.regrow", graph)
    assert_same_graph(file.read(path), graph)
    assert [path.name for path in tmp_path.iterdir()] == ["model.regrow"]


def test_a_graph_written_twice_is_one_file(tmp_path: Path) -> None:
    assert len({file.write(tmp_path / f"{i}", small("int8")).read_bytes() for i in range(8)}) == 1


def test_odd_weights(tmp_path: Path) -> None:
    graph = small()
    weights = {
        "none": sparse(4, 5, density=0.0),
        "all": torch.ones(3, 2),
        "wide": sparse(3, 70_000, density=1e-3),
    }
    graph.weights |= {name: connections(weight) for name, weight in weights.items()}
    found = file.read(file.write(tmp_path / "model", graph))
    for name, weight in weights.items():
        kept = found.weights[name]
        assert isinstance(kept, Connections)
        assert torch.equal(kept.dense(), weight)


@pytest.mark.parametrize(("precision", "most"), [("float32", 0.16), ("bfloat16", 0.09), ("int8", 0.07)])
def test_a_file_is_small(tmp_path: Path, precision: str, most: float) -> None:
    graph = small(precision)
    weight = sparse(512, 512, 3, 3)
    graph.weights["fc.weight"] = connections(weight, getattr(torch, precision))
    assert file.write(tmp_path / "model", graph).stat().st_size < most * weight.nbytes


def test_values_stay_in_the_file(tmp_path: Path) -> None:
    graph = small()
    graph.weights["fc.weight"] = torch.ones(2**22, 8)  # 128 MiB
    path = file.write(tmp_path / "model", graph)

    def own() -> int:  # pages that are no file's
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("tells no memory")
    before = own()
    graph_read = file.read(path)
    assert own() - before < 2**25
    weight = graph_read.weights["fc.weight"]
    assert isinstance(weight, Tensor)
    assert float(weight.sum()) == 2**25


# What is wrong: either the bytes, or the content beneath a checksum that is right


def rewritten(change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """A file whose program and tensors are changed, with a checksum that is right."""

    def make(folder: Path) -> None:
        path = file.write(folder / "model", small("int8"))
        metadata, tensors = sealed.read(path, "")
        program = json.loads(metadata["program"])
        change(program, tensors)
        text = program["text"] if "text" in program else json.dumps(program)
        del metadata["checksum"]
        sealed.write(
            path, {k: t.clone() for k, t in tensors.items()}, {**metadata, "program": text}, "program"
        )

    return make


def put(key: str, value: Any) -> Callable[[Path], None]:
    """A file with another value in its program; `key` is a path such as ``nodes.0.1``."""

    def change(program: dict[str, Any], _: dict[str, Tensor]) -> None:
        *path, last = [int(part) if part.isdecimal() else part for part in key.split("/")]
        inside: Any = program
        for part in path:
            inside = inside[part]
        inside[last] = value

    return rewritten(change)


def text(program: str) -> Callable[[Path], None]:
    """A file with this text for its program."""
    return rewritten(lambda changed, _: changed.update(text=program))


def tensor(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return rewritten(lambda _, tensors: tensors.update({key: change(tensors[key].clone())}))


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = file.write(folder / "model", small("int8"))
        path.write_bytes(change(path.read_bytes()))

    return make


def with_(tensor_: Tensor, at: int, value: int) -> Tensor:
    tensor_[at] = value
    return tensor_


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def metadata(**changes: str) -> Callable[[Path], None]:
    """A file with other metadata."""

    def make(folder: Path) -> None:
        path = file.write(folder / "model", small("int8"))
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"] |= changes
        header["__metadata__"] = {k: v for k, v in header["__metadata__"].items() if v != "-"}
        text = json.dumps(header).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return make


def of_training(folder: Path) -> None:
    regrow.save(regrow.sparsify(torch.nn.Linear(40, 40), 0.9), folder / "model")


NEWEST = _formats.DEPLOYED
CONV, W = "nodes/0", "conv.weight"
ROUNDING = {"input_scale": 0.1, "input_signed": True}
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (raw(lambda content: b""), r"cannot be read: .*\nIt must be a file that `deployed.save"),
    "cut": (raw(lambda content: content[:-9]), r"cannot be read: .*\nIt must be a file that"),
    "cut-header": (raw(lambda content: content[:100]), r"cannot be read: .*\nIt must be"),
    "long-header": (raw(lambda content: b"\xff" * 8 + content[8:]), r"cannot be read: .*\nIt must be"),
    "flipped": (
        raw(lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        r"was changed after it was written",
    ),
    "other": (of_training, r"does not hold a deployed network\nLoad a file of regrow.save with regrow.load"),
    "unmarked": (metadata(regrow_deployed="-"), r"does not hold a deployed network\nIt must be a file that"),
    "newer": (
        metadata(regrow_deployed=str(NEWEST + 1)),
        rf"is of format {NEWEST + 1}, and this regrow reads formats up to {NEWEST}\nIt was written by a newer",
    ),
    "number": (metadata(regrow_deployed="one"), r"its format must be a number, got 'one'\n"),
    "number-long": (metadata(regrow_deployed="9" * 5000), r"its format must be a number, got '999"),
    "more": (metadata(more="1"), r"unknown metadata \['more'\]"),
    "no-checksum": (metadata(checksum="-"), r"it has no program, or no checksum\nCopy"),
    "no-program": (metadata(program="-"), r"it has no program, or no checksum\nCopy"),
    "no-json": (text("{"), r"its program is not JSON\nCopy"),
    "deep-json": (text("[" * 100_000), r"its program is not JSON\nCopy"),
    "long-number": (text("1" * 10_000), r"its program is not JSON\nCopy"),
    "long-program": (
        text("[" + "[]," * 3_000_000 + "[]]"),
        r"a program has at most 8,388,608 bytes",
    ),
    "many-lists": (text("[" + "[]," * 2_700_000 + "[]]"), r"a program is inputs, outputs"),
    "list": (
        rewritten(lambda p, _: p.update(text="[]")),
        r"a program is inputs, outputs, signature",
    ),
    "keys": (rewritten(lambda p, _: p.pop("nodes")), r"a program is inputs, outputs, signature"),
    "no-outputs": (
        rewritten(lambda p, _: p.update(outputs=[], structure={"value": 1})),
        r"a program has inputs and outputs",
    ),
    "input": (put("inputs/0", "x"), r"an input has no shape"),
    "input-shape": (put("inputs/0/shape", [1, -3]), r"a shape is whole numbers"),
    "input-bool": (put("inputs/0/shape", [True, 3]), r"a shape is whole numbers"),
    "input-huge": (put("inputs/0/shape", [2**30] * 4), r"a shape is too large"),
    "input-dtype": (put("inputs/0/dtype", "complex64"), r"'complex64' is not a dtype"),
    "input-name": (put("inputs/0/name", ["x"]), r"an input has no name"),
    "output": (put("outputs", ["nothing"]), r"its output `nothing` is not there"),
    "output-number": (put("outputs", ["x", "fc"]), r"a structure does not name each tensor once"),
    "signature": (put("signature", {"tensor": 0}), r"`signature` is not that of a call"),
    "signature-dict": (
        put("signature", {"tuple": [{"list": [{"tensor": 0}]}, {"dict": {}}]}),
        r"is not that of a",
    ),
    "structure": (put("structure", [{"tensor": 0}]), r"a structure is plain data"),
    "structure-code": (put("structure", {"dict": {"a": {"code": 0}}}), r"a structure is plain data"),
    "structure-twice": (put("structure", {"list": [{"tensor": 0}] * 2}), r"does not name each tensor once"),
    "structure-value": (put("structure", {"value": [1]}), r"a structure is plain data"),
    "dynamic": (put("dynamic", 1), r"`dynamic` is not a bool"),
    "precision": (put("precision", "int4"), r"`precision` is one of float32, bfloat16, int8"),
    "other-precision": (put("precision", "float32"), r"`conv.weight`: its values must be torch.float32"),
    "scale": (put(f"{CONV}/3", {**ROUNDING, "input_scale": 0.0}), r"`conv` cannot round .* multiples of 0.0"),
    "scale-nan": (put(f"{CONV}/3", {**ROUNDING, "input_scale": {"float": "nan"}}), r"to multiples of nan"),
    "scale-text": (put(f"{CONV}/3", {**ROUNDING, "input_scale": "one"}), r"to multiples of one"),
    "sign": (put(f"{CONV}/3", {"input_scale": 0.1}), r"`conv` takes input_scale and input_signed"),
    "sign-text": (put(f"{CONV}/3", {**ROUNDING, "input_signed": "yes"}), r"`conv` takes input_scale and"),
    "option": (put(f"{CONV}/3", {"inputs": 0.1}), r"`conv` takes input_scale and input_signed"),
    "node": (put(CONV, ["conv"]), r"an operation is name, op, arguments and layer"),
    "op": (put(f"{CONV}/1", "os.system"), r"the operation 'os.system' is not one of a network's"),
    "op-file": (put(f"{CONV}/1", "aten.from_file.default"), r"operation 'aten.from_file.default' is not one"),
    "op-in-place": (put(f"{CONV}/1", "aten.set_.default"), r"the operation 'aten.set_.default' is not one"),
    "op-list": (put(f"{CONV}/1", []), r"the operation '\[\]' is not one of"),
    "cycle": (put(f"{CONV}/2/0", {"ref": "fc"}), r"`conv` uses `fc` before it is there"),
    "itself": (put(f"{CONV}/2/0", {"ref": "conv"}), r"`conv` uses `conv` before it is there"),
    "missing": (put("nodes/1/3", {"x": [{"ref": "no"}]}), r"`pool` uses `no` before it is there"),
    "twice": (put("nodes/1/0", "conv"), r"two values of the name `conv`"),
    "same": (put("constants", ["conv.bias", "fc.weight"]), r"two values of one name"),
    "argument": (put(f"{CONV}/2/0", {"code": "1"}), r"an argument is plain data"),
    "argument-two": (put(f"{CONV}/2/0", {"ref": "x", "float": "inf"}), r"an argument is plain data"),
    "argument-number": (put(f"{CONV}/2/3", 2**64), r"a whole number has 64 bits"),
    "argument-deep": (put(f"{CONV}/2/3", nested(9)), r"an argument has lists in lists"),
    "does-not-fit": (
        tensor("fc.weight", lambda t: t[:, 1:]),
        r"its operations do not fit together: \w",
    ),
    "too-few": (put(f"{CONV}/2", []), r"its operations do not fit together"),
    "huge": (
        put(f"{CONV}/2/4/tuple", [2**30, 2**30]),
        r"`conv` is of [0-9,]{20,} numbers|do not fit together",
    ),
    "tensor-missing": (rewritten(lambda _, t: t.pop("conv.bias")), r"the tensor `conv.bias` is missing"),
    "tensor-more": (rewritten(lambda _, t: t.update(no=torch.ones(1))), r"does not know the tensor `no`"),
    "tensor-dtype": (
        tensor("conv.bias", lambda t: t.to(torch.complex64)),
        r"`conv.bias` is of torch.complex64",
    ),
    "weight-shape": (
        put("weights", {W: [8], "fc.weight": None}),
        r"`conv.weight`: connections cannot have the",
    ),
    "weight-huge": (put("weights", {W: [8, 2**31 - 1, 9], "fc.weight": None}), r"cannot have the shape"),
    "weight-rows": (put("weights", {W: [9, 27], "fc.weight": None}), r"row pointers must be int32 \[10\]"),
    "weight-narrow": (
        put("weights", {W: [8, 5], "fc.weight": None}),
        r"must ascend in each row, in \[0, 5\)",
    ),
    "crow-dtype": (tensor(f"{W}_crow", Tensor.long), r"its row pointers must be int32 \[9\]"),
    "crow-start": (tensor(f"{W}_crow", lambda t: with_(t, 0, 1)), r"must ascend from 0 to the number"),
    "crow-end": (tensor(f"{W}_crow", lambda t: with_(t, -1, 2**30)), r"must ascend from 0 to the number"),
    "crow-order": (tensor(f"{W}_crow", lambda t: with_(t, 4, -5)), r"must ascend from 0 to the number"),
    "crow-overflow": (
        tensor(f"{W}_crow", lambda t: t.copy_(torch.tensor([0, 2**31 - 1, -(2**31), *[-1] * 5, int(t[-1])]))),
        r"must ascend from 0 to the number",
    ),
    "gaps-dtype": (tensor(f"{W}_gaps", lambda t: t.to(torch.int8)), r"its columns must be bytes"),
    "gaps-short": (tensor(f"{W}_gaps", lambda t: t[1:]), r"its columns are not as many as its connections"),
    "gaps-zero": (tensor(f"{W}_gaps", torch.zeros_like), r"must ascend in each row"),
    "gaps-large": (tensor(f"{W}_gaps", lambda t: with_(t, 0, 200)), r"must ascend in each row, in \[0, 27\)"),
    "values-dtype": (tensor(f"{W}_values", Tensor.float), r"its values must be torch.int8"),
    "values-short": (
        tensor(f"{W}_values", lambda t: t[1:]),
        r"must ascend from 0 to the number of connections",
    ),
    "scale-short": (tensor(f"{W}_scale", lambda t: t[1:]), r"its scales must be float32 \[8\]"),
    "scale-missing": (rewritten(lambda _, t: t.pop(f"{W}_scale")), r"`conv.weight_scale` is missing"),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    made = {name: make for name, (make, _) in CASES.items()}
    return answers(__file__, made, tmp_path_factory.mktemp("corrupt"))


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_wrong_has_its_answer(answered: dict[str, dict[str, Any]], case: str) -> None:
    check(answered.get(case), CASES[case][1])


def test_a_scale_that_is_not_a_number_is_read(tmp_path: Path) -> None:
    tensor("conv.weight_scale", lambda t: t * float("nan"))(tmp_path)
    weight = file.read(tmp_path / "model").weights["conv.weight"]
    assert isinstance(weight, Connections)
    assert weight.scale is not None
    assert bool(weight.scale.isnan().all())


def test_any_bit_that_is_flipped_is_found(tmp_path: Path) -> None:
    path = file.write(tmp_path / "model", small("int8"))
    content, chosen = path.read_bytes(), random.Random(0)
    for at in {*range(0, len(content), 7), *(chosen.randrange(len(content)) for _ in range(100))}:
        flipped = bytearray(content)
        flipped[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(RegrowValueError):
            file.read(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = file.write(tmp_path / "model", small("int8"))
    content = path.read_bytes()
    for length in range(0, len(content), 11):
        path.write_bytes(content[:length])
        with pytest.raises(RegrowValueError, match="cannot be read"):
            file.read(path)


def changed(value: Any, chosen: random.Random) -> Any:
    """The same plain data with one thing in it replaced, removed or repeated."""
    odd = [
        None,
        True,
        -1,
        2**40,
        2**70,
        1e300,
        "",
        "x",
        "conv",
        [],
        {},
        {"ref": "fc"},
        {"tuple": [1]},
        [[[]]],
    ]
    if isinstance(value, dict) and value and chosen.random() < 0.9:
        key = chosen.choice(list(value))
        return {**value, key: changed(value[key], chosen)}
    if isinstance(value, list) and value and chosen.random() < 0.9:
        at = chosen.randrange(len(value))
        new = chosen.choice([[], [value[at]] * 2, [changed(value[at], chosen)], [changed(value[at], chosen)]])
        return value[:at] + new + value[at + 1 :]
    return chosen.choice(odd)


def test_a_program_changed_anywhere_is_refused_or_plain_data(tmp_path: Path) -> None:
    """Nothing but a clear error or a graph that holds what graphs hold, whatever stands beneath the checksum."""
    chosen, path, refused, longest = random.Random(0), tmp_path / "model", 0, 0
    for _ in range(400):
        rewritten(lambda program, _: program.update(text=json.dumps(changed(dict(program), chosen))))(
            tmp_path
        )
        try:
            graph = file.read(path)
        except RegrowValueError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        else:
            assert_same_graph(file.read(file.write(tmp_path / "again", graph)), graph)
    assert refused > 200
    assert longest < 500


def read(folder: Path) -> None:
    """Read the file in `folder`."""
    file.read(folder / "model")


if __name__ == "__main__":
    serve(read)

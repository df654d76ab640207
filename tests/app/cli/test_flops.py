"""`regrow flops`: the document that the issue asks for, the table, and every bad argument."""

import json
import math
import re

import pytest
from tiny import cli

from regrow.models import models

OWN = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, width=1.0):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(12, int(20 * width)), nn.ReLU(), nn.Linear(int(20 * width), 4))
        self.scale = float(torch.ones(3).sum())  # has no value on the meta device

    def forward(self, x):
        return self.fc(x) * self.scale

def odd(width=1.0):
    return Odd(width)

def plain(width=1.0, classes=4):
    return nn.Sequential(nn.Linear(12, int(40 * width)), nn.ReLU(), nn.Linear(int(40 * width), classes))

def needs(size):
    return nn.Linear(size, 2)

def nothing():
    return 7
"""


def document(capsys, *arguments):
    ended = cli(capsys, "flops", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


@pytest.mark.smoke
def test_resnet50_as_one_json_document(capsys):
    found = document(
        capsys, "resnet50", "--sparsity", "0.8", "--distribution", "uniform", "--convention", "rigl"
    )
    assert (found["model"], found["sparsity"], found["distribution"], found["convention"]) == (
        "resnet50", 0.8, "uniform", "rigl",
    )  # fmt: skip
    assert found["parameters"]["dense"] == 25_502_912
    assert found["flops"]["dense"] == pytest.approx(8.2023e9, rel=1e-5)
    assert found["flops"]["inference_multiple"] == pytest.approx(0.2254, abs=1e-4)
    assert found["size_megabytes"]["sparse"] == pytest.approx(23.729, abs=1e-3)
    training = found["training_multiple"]
    assert list(training)[:8] == ["dense", "static", "snip", "small-dense", "set", "rigl", "snfs", "pruning"]
    assert training["rigl"] == pytest.approx(0.2279, abs=1e-4)
    assert training["pruning"] == pytest.approx(0.5603, abs=1e-4)
    # the width 0.465 of the paper has 0.2214 of the FLOPs; the one that really matches has slightly fewer
    assert found["small_dense_width"] == pytest.approx(0.465, abs=0.005)
    assert training["small-dense"] == pytest.approx(0.2214, abs=0.003)
    assert len(found["layers"]) == 54
    first = found["layers"][0]
    assert {
        "name",
        "shape",
        "parameters",
        "connections",
        "density",
        "flops_dense",
        "flops_sparse",
    } <= first.keys()
    assert (first["name"], first["shape"], first["density"]) == ("conv1.weight", [64, 3, 7, 7], 1)
    assert sum(layer["connections"] for layer in found["layers"]) == found["parameters"]["sparse"]
    assert all(layer["parameters"] == math.prod(layer["shape"]) for layer in found["layers"])


def test_98_percent(capsys):
    for distribution in ("uniform", "erk"):
        found = document(capsys, "resnet50", "--sparsity", "0.98", "--distribution", distribution)
        real = 1 - found["parameters"]["sparse"] / found["parameters"]["dense"]
        assert real == pytest.approx(0.98, abs=5e-4)
        training = found["training_multiple"]
        assert training["static"] < training["rigl"] < training["snfs"] < training["pruning"] < 1


def test_five_times_the_steps(capsys):
    found = document(
        capsys,
        "resnet50",
        "--sparsity",
        "0.9",
        "--convention",
        "rigl",
        "--multiplier",
        "5",
        "--update-every",
        "100",
    )
    assert found["training_multiple"]["rigl"] == pytest.approx(1.2282, abs=1e-4)
    assert found["flops"]["inference_multiple"] == pytest.approx(0.2431, abs=1e-4)


def test_granet_has_its_own_interval(capsys):
    text = cli(
        capsys, "flops", "resnet50", "--sparsity", "0.8", "--convention", "rigl", "--update-every", "50"
    ).out
    assert "an update every 50 steps (granet: every 1,000, from sparsity 0.5):" in text
    assert "granet 0.4543" in text


def test_tickets(capsys):
    wrn = ["wrn", "depth=28", "widen=10"]
    found = document(capsys, *wrn, "--sparsity", "0.8", "--tickets", "3")
    training, one = found["training_multiple"], found["flops"]["inference_multiple"]
    assert [round(training[name], 3) for name in ("sup", "edst", "dst")] == [0.341, 0.611, 1.019]
    assert found["test_multiple"] == pytest.approx(
        {"sup": one, "edst": 3 * one, "dst": 3 * one, "lottery": one}
    )
    more = document(capsys, *wrn, "--sparsity", "0.9", "--tickets", "7")
    assert round(more["training_multiple"]["edst"], 3) == 0.573
    assert "sup" not in document(capsys, *wrn)["training_multiple"]
    text = cli(capsys, "flops", *wrn, "--sparsity", "0.8", "--tickets", "3").out
    assert "edst 0.6112  dst 1.0187" in text
    assert "test of these, multiples of dense: sup 0.3397  edst 1.0192  dst 1.0192  lottery 0.3397" in text


def test_mobilenet_keeps_dense_what_the_paper_does(capsys):
    kept = {
        layer["name"]: layer["density"]
        for layer in document(capsys, "mobilenet-v1", "--sparsity", "0.9")["layers"]
    }
    assert kept["conv1.weight"] == kept["blocks.0.depthwise.weight"] == 1
    uniform = document(
        capsys, "mobilenet-v1", "--sparsity", "0.9", "--distribution", "uniform", "--convention", "rigl"
    )
    assert uniform["flops"]["sparse"] / 1e6 == pytest.approx(168.614, rel=1e-4)  # no second layer is dense
    named = document(
        capsys, "mobilenet-v1", "--sparsity", "0.9", "--convention", "rigl",
        "--include", "conv1", "--include", "*.pointwise", "--include", "fc",
    )  # fmt: skip
    assert named["flops"]["sparse"] / 1e6 == pytest.approx(334.134, rel=1e-4)
    assert named["size_megabytes"]["sparse"] == pytest.approx(2.392, abs=6e-4)


@pytest.mark.parametrize("name", list(models()))
def test_every_network_of_the_zoo(capsys, name):
    found = document(capsys, name, "--sparsity", "0.8")
    assert found["uncounted"] == (["positions"] if name == "vit" else [])
    assert 0 < found["flops"]["inference_multiple"] < 1
    assert found["small_dense_width"] < 1


def test_the_table(capsys):
    ended = cli(capsys, "flops", "wrn", "depth=16", "widen=4", "--sparsity", "0.9")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("wrn depth=16 widen=4, input 3 x 32 x 32: sparsity 0.9, erk\n")
    for word in (
        "group3.1.conv2.weight",
        "256 x 256 x 3 x 3",
        "rigl 0.",
        "MB sparse",
        "all counted, convention clean",
    ):
        assert word in ended.out
    assert "the network of width 0." in ended.out


def test_options_change_the_input(capsys):
    found = document(capsys, "mlp", "inputs=64", "hidden=[32, 16]", "classes=4")
    assert (found["input"], found["parameters"]["dense"]) == ([64], 64 * 32 + 32 * 16 + 16 * 4)
    assert document(capsys, "lenet", "channels=3", "size=32")["input"] == [3, 32, 32]
    assert document(capsys, "gpt", "context=16", "dim=24")["input"] == [16]


def test_another_input(capsys):
    small, large = (document(capsys, "resnet18", "--input", f"3,{n},{n}") for n in (64, 128))
    assert large["multiply_adds"]["dense"] > 3.9 * small["multiply_adds"]["dense"]


def test_your_own_network(capsys, own):
    found = document(capsys, f"{own}:plain", "classes=2", "--input", "12", "--sparsity", "0.5")
    assert found["parameters"]["dense"] == 12 * 40 + 40 * 2
    assert found["training_multiple"]["small-dense"] is not None
    odd = document(capsys, f"{own}:odd", "--input", "12", "--sparsity", "0.5")  # built on the CPU, then
    assert odd["parameters"]["dense"] == 12 * 20 + 20 * 4
    assert odd["training_multiple"]["small-dense"] < 1
    fixed = cli(capsys, "flops", f"{own}:needs", "size=12", "--input", "12")
    assert "small-dense has no figure" in fixed.out


def test_your_own_file(capsys, tmp_path):
    (tmp_path / "own_flops_file.py").write_text(OWN)
    found = document(
        capsys, "own_flops_file:plain", "--input", "12", "--import", tmp_path / "own_flops_file.py"
    )
    assert found["model"] == "own_flops_file:plain"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["resnet51"],
            "`model` must be one of mlp, lenet, allconv, wrn, .*got 'resnet51', did you mean `resnet50`",
        ),
        (["no_such_module:net", "--input", "3"], "there is no module `no_such_module`"),
        (["own_networks:nett", "--input", "3"], "module `own_networks` has no `nett`"),
        (
            ["own_networks:plain"],
            "`--input` is missing: the sizes of one example of own_networks:plain\nFor images",
        ),
        (
            ["own_networks:needs", "--input", "3"],
            "`size` is missing: own_networks:needs needs it\nGive it as size=VALUE",
        ),
        (
            ["own_networks:nothing", "--input", "3"],
            "`model` own_networks:nothing returned 7, no torch module",
        ),
        (["own_networks:plain", "--input", "13"], r"`example` does not go through `model`: shape \(1, 13\)"),
        (
            ["mlp", "hiden=3"],
            "`hiden` is not an option of mlp, did you mean `hidden`\\?\nAllowed are: `inputs`",
        ),
        (["mlp", "hidden"], "an option must be key=value, for example width=0.5, got 'hidden'"),
        (["mlp", "width=[1"], "`width`: .* is no YAML"),
        (["mlp", "width=half"], "`width` must be a number above 0, got 'half'"),
        (["mlp", "--sparsity", "1"], r"`sparsity` must be in \[0, 1\), got 1.0"),
        (["mlp", "--sparsity", "-0.1"], r"`sparsity` must be in \[0, 1\), got -0.1"),
        (
            ["mlp", "--distribution", "erkk"],
            "`distribution` must be one of uniform, er, erk.*did you mean `erk`",
        ),
        (["mlp", "--convention", "paper"], "`convention` must be one of clean, rigl, got 'paper'"),
        (
            ["mlp", "--input", "28x28"],
            "`--input` must be sizes such as 3,224,224, whole numbers above 0, got '28x28'",
        ),
        (
            ["mlp", "--input", "0"],
            "`--input` must be sizes such as 3,224,224, whole numbers above 0, got '0'",
        ),
        (["mlp", "--input", "100"], r"`example` does not go through `model`: shape \(1, 100\)"),
        (["mlp", "--exclude", "conv*"], r"`exclude` matches nothing: 'conv\*'"),
        (
            ["mlp", "--include", "layers.0", "--exclude", "layers.2"],
            "`include` and `exclude` were both given",
        ),
        (["mlp", "--update-every", "0"], "`update_every` must be a whole number of at least 1, got 0"),
        (["mlp", "--tickets", "0"], "`tickets` must be a whole number of at least 1, got 0"),
        (["mlp", "--multiplier", "0"], "`multiplier` must be a number above 0, got 0"),
        (["mlp", "--import", "nothing.py"], "nothing.py: no such file"),
    ],
)
def test_errors_are_text(capsys, own, arguments, text):
    ended = cli(capsys, "flops", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert re.search(text, ended.err), ended.err
    assert "Traceback" not in ended.err

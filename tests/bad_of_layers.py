"""Bad arguments of layers, timing, data, recipes and networks."""

from __future__ import annotations

import torch
from given import (
    COUNTS,
    FLAGS,
    INF,
    MAYBE_FRACTIONS,
    NAN,
    NOT_COUNTS,
    POSITIVE,
    TENSORS,
    WORDS,
    Row,
)
from torch import nn

import regrow
from regrow import data, models, testing
from regrow.app.recipes import rates
from regrow.data.dataset import check_dataset
from regrow.measure import timing
from regrow.nn import SparseGRU, SparseLSTM, SparseRNN

AT = {"weight_hh_l0": torch.tensor([0, 3])}
LAYERS: list[Row] = [
    (
        "SparseLinear",
        regrow.SparseLinear,
        lambda w: {
            "in_features": 4,
            "out_features": 2,
            "positions": torch.tensor([0, 3]),
            "values": torch.ones(2),
        },
        {
            "in_features": (None, *COUNTS),
            "out_features": (None, *COUNTS),
            "bias": (None, *FLAGS),
            "positions": ([0, 3], None, torch.tensor([3, 0]), torch.ones(2)),
            "values": ([1.0, 1.0], None, torch.ones(3), torch.ones(2).long()),
            "activation": WORDS,
        },
    ),
    (
        "SparseConv2d",
        regrow.SparseConv2d,
        lambda w: {
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": 3,
            "positions": torch.tensor([0, 3]),
            "values": torch.ones(2),
        },
        {
            "in_channels": (None, *COUNTS),
            "out_channels": (None, *COUNTS),
            "kernel_size": (None, 0, "a", (3,), (3, 3, 3), (3, 0), 1.5, True),
            "stride": (None, 0, "a", (1,), 1.5),
            "padding": (None, -1, "a", (1,), 1.5, "full"),
            "dilation": (None, 0, "a"),
            "groups": (None, 2, "a"),
            "bias": (None, *FLAGS),
            "padding_mode": (None, 5, "circular"),
            "positions": ([0, 3], None),
            "values": ([1.0, 1.0], None),
        },
    ),
    (
        "SparseLSTM",
        SparseLSTM,
        lambda w: {
            "input_size": 3,
            "hidden_size": 2,
            "positions": AT,
            "values": {"weight_hh_l0": torch.ones(2)},
        },
        {
            "input_size": (None, *COUNTS),
            "hidden_size": (None, *COUNTS),
            "num_layers": (None, *COUNTS),
            "bias": (None, *FLAGS),
            "batch_first": (None, *FLAGS),
            "dropout": (None, *MAYBE_FRACTIONS),
            "bidirectional": (None, *FLAGS),
            "proj_size": (None, 1, *NOT_COUNTS),
            "positions": (None, 5, {}, {"weight_hh_l0": [0, 3]}, {"weight_hh_l0": torch.tensor([3, 0])}),
            "values": (None, 5, {}, {"weight_hh_l0": [1.0, 1.0]}, {"weight_hh_l0": torch.ones(3)}),
        },
    ),
    (
        "SparseRNN",
        SparseRNN,
        lambda w: {
            "input_size": 3,
            "hidden_size": 2,
            "positions": AT,
            "values": {"weight_hh_l0": torch.ones(2)},
        },
        {"nonlinearity": (None, "Tanh", *WORDS)},
    ),
    (
        "SparseGRU.from_dense",
        SparseGRU.from_dense,
        lambda w: {"rnn": nn.GRU(3, 2), "positions": AT},
        {
            "rnn": (None, 5, nn.LSTM(3, 2), nn.GRU),
            "positions": (None, 5, {}, {"weight_hh_l0": [0, 3]}, {**AT, "weight_hr_l0": AT["weight_hh_l0"]}),
            "values": (5, [1.0], {"weight_hh_l0": torch.ones(3)}),
        },
    ),
    (
        "from_linear",
        regrow.SparseLinear.from_linear,
        lambda w: {"linear": w.dense[0], "positions": torch.tensor([0, 3])},
        {"linear": (None, 5, nn.ReLU(), nn.Linear), "positions": ([0, 3], None), "values": ([1.0, 1.0], 5)},
    ),
    (
        "from_conv",
        regrow.SparseConv2d.from_conv,
        lambda w: {"conv": w.conv, "positions": torch.tensor([0, 3])},
        {"conv": (None, 5, nn.ReLU(), nn.Conv2d), "positions": ([0, 3], None), "values": ([1.0, 1.0], 5)},
    ),
    (
        "interleaved",
        timing.interleaved,
        lambda w: {"ways": {"a": lambda: None}, "seconds": 0.0, "rounds": 1},
        {
            "ways": (None, 5, {}, {"a": 5}, {"a": lambda x: x}, {5: lambda: None}),
            "seconds": (None, -1.0, "a", NAN, INF, True),
            "rounds": (None, *COUNTS),
        },
    ),
    ("load of the machine", timing.load, lambda w: {}, {"seconds": (None, -1.0, "a", NAN, INF, True)}),
    ("check_method", testing.check_method, lambda w: {}, {"cls": (None, 5, "rigl", nn.Linear, dict)}),
    (
        "corrupt",
        data.corrupt,
        lambda w: {"images": w.images, "name": "fog", "severity": 1},
        {
            "images": (*TENSORS, torch.zeros(2, 1, 8, 8)),
            "name": (None, *WORDS),
            "severity": (None, 6, *COUNTS),
            "seed": NOT_COUNTS,
            "start": NOT_COUNTS,
        },
    ),
    (
        "corrupted",
        data.corrupted,
        lambda w: {"images": w.images},
        {"severities": (5, [], "ab"), "names": (5, [], "fog"), "seed": NOT_COUNTS, "start": NOT_COUNTS},
    ),
    (
        "Augment",
        data.Augment,
        lambda w: {},
        {
            "crop": NOT_COUNTS,
            "border": WORDS,
            "resized_crop": COUNTS,
            "scale": (5, (1.0,), (0.5, 0.1), (0.1, 2.0), ("a", "b"), (NAN, 1.0), (0.1, True)),
            "ratio": (5, (1.0,), (0.5, 0.1), (0.0, 2.0), ("a", "b"), (NAN, 1.0)),
            "flip": (None, *FLAGS),
        },
    ),
    (
        "order",
        data.order,
        lambda w: {"seed": 0, "epoch": 0, "size": 5},
        {"seed": NOT_COUNTS, "epoch": NOT_COUNTS, "size": NOT_COUNTS},
    ),
    ("idx", data.idx, lambda w: {}, {"folder": (None, 5, ["a"], "/nowhere")}),
    ("fashion_mnist", data.fashion_mnist, lambda w: {}, {"folder": (5, ["a"])}),
    ("cifar10", data.cifar10, lambda w: {}, {"folder": (5, ["a"]), "per_image": FLAGS, "limit": COUNTS}),
    ("cifar100", data.cifar100, lambda w: {}, {"folder": (5, ["a"]), "coarse": FLAGS, "limit": COUNTS}),
    (
        "image_folder",
        data.image_folder,
        lambda w: {"folder": "/nowhere"},
        {
            "folder": (None, 5),
            "size": COUNTS,
            "channels": (None, 2, "a", True),
            "limit": COUNTS,
            "whole": FLAGS,
            "cache": (5,),
        },
    ),
    (
        "text",
        data.text,
        lambda w: {"path": __file__},
        {"path": (None, 5, "/nowhere"), "length": (None, *COUNTS), "limit": COUNTS, "pattern": (None, 5)},
    ),
    ("gcide", data.gcide, lambda w: {}, {"folder": (5, ["a"])}),
    (
        "check_dataset",
        lambda w, **changed: check_dataset(data.Dataset("own", **{**w.tensors, **changed}), "own"),
        lambda w: {"w": w},
        {
            "train_inputs": ([[1.0]], None),
            "train_targets": ([0, 1], None, torch.zeros(5)),
            "test_targets": ([0, 1], torch.full((5,), 9)),
            "classes": (None, *COUNTS),
        },
    ),
    (
        "rates.cosine",
        rates.cosine,
        lambda w: {"total_steps": 40},
        {"total_steps": (None, *COUNTS), "warmup_steps": (None, *NOT_COUNTS)},
    ),
    ("rates.constant", rates.constant, lambda w: {"total_steps": 40}, {"warmup_steps": (None, *NOT_COUNTS)}),
    (
        "rates.step",
        rates.step,
        lambda w: {"total_steps": 40, "milestones": [10, 20]},
        {
            "milestones": (None, 5, "ab", [20, 10], ["a"], [1.5], [-1], [True]),
            "factor": (None, *POSITIVE),
            "warmup_steps": (None, *NOT_COUNTS),
        },
    ),
    (
        "mlp",
        models.mlp,
        lambda w: {},
        {"inputs": COUNTS, "hidden": (None, 5, "ab", (0,), ("a",)), "classes": COUNTS, "width": POSITIVE},
    ),
    ("mlp of low rank", models.mlp, lambda w: {"rank": 3}, {"rank": COUNTS, "rest": FLAGS}),
    (
        "small_dense",
        models.small_dense,
        lambda w: {"build": models.mlp, "size_megabytes": 0.1},
        {"build": (None, 5, lambda: None), "size_megabytes": (None, *POSITIVE), "convention": WORDS},
    ),
]

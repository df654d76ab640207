"""Bad arguments to everything public: refused by name before anything has changed; odd numbers are numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow import data, landscape, models, schedules, testing, tickets, timing, topology
from regrow.costs import granet_levels, pruning_levels, stored_size, ticket_multiples, training_multiple
from regrow.data.dataset import check_dataset
from regrow.methods import Method, registry
from regrow.recipes import rates
from regrow.tickets.phases import Phases

NAN, INF = float("nan"), float("inf")
NOT_COUNTS = (-1, 1.5, "a", True, NAN, INF, [3], torch.tensor([1, 2]), torch.tensor(True))
COUNTS = (0, *NOT_COUNTS)
MAYBE_FRACTIONS = (-0.1, 1.5, "half", True, NAN, [0.5], torch.tensor([0.5]))
FRACTIONS = (1.0, *MAYBE_FRACTIONS)
POSITIVE = (0, -1.0, "a", True, NAN, INF, [1.0])
FLAGS = ("maybe", 5, 0.0, [True])
WORDS = ("nonsense", 5, ["layer"], True)
MODELS = (None, 5, "model", nn.Linear, {"weight": torch.zeros(2, 2)})
OPTIMIZERS = (None, 5, "SGD", torch.optim.SGD)
GROUPS = (5, "world", [0, 1])
FUNCTIONS = (5, [1], lambda: 1.0, lambda a, b, c, d: 1.0)
TENSORS = ([[0.5, 0.5]], np.ones((2, 2)), None, "a")
PATTERNS = (5, [5], [None], {"0": 0.5}, lambda: True)


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


class World:
    """What arguments refer to, none of which may change: a dense model, a sparse one, and one that is driven."""

    def __init__(self) -> None:
        self.dense = network()
        self.sparse = regrow.sparsify(network(), 0.5, storage="masked", rescale=False)
        self.optimizer = torch.optim.SGD(self.sparse.parameters(), lr=0.1, momentum=0.9)
        self.driven = regrow.sparsify(network(), 0.5, storage="masked", rescale=False)
        self.its_optimizer = torch.optim.SGD(self.driven.parameters(), lr=0.1, momentum=0.9)
        self.method = regrow.RigL(self.driven, self.its_optimizer, total_steps=40, update_every=4)
        self.x, self.y = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
        self.p = torch.randn(5, 4).softmax(1)
        self.conv, self.images = nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        kept = {"inputs": self.x, "targets": self.y}
        self.tensors: dict[str, Any] = {
            f"{split}_{k}": v for split in ("train", "test") for k, v in kept.items()
        }
        self.tensors["classes"] = 4

    def state(self) -> tuple[list[Any], list[Tensor]]:
        """All that a refused call could have changed."""
        networks = (self.dense, self.sparse, self.driven)
        optimizers = (self.optimizer, self.its_optimizer)
        plain: list[Any] = [[type(m) for m in network.modules()] for network in networks]
        plain += [[m.training for m in network.modules()] for network in networks]
        for o in optimizers:
            plain += [len(o._optimizer_step_pre_hooks), sorted(o.__dict__), len(o.state)]
            plain += [
                {k: v for k, v in group.items() if k != "params"} | {"held": [id(p) for p in group["params"]]}
                for group in o.param_groups
            ]
        tensors = [t.detach().clone() for network in networks for t in network.state_dict().values()]
        return plain, [*tensors, torch.get_rng_state()]


Base = Callable[[World], dict[str, Any]]
Row = tuple[str, Callable[..., Any], Base, Mapping[str, tuple[Any, ...]]]


def both(w: World) -> dict[str, Any]:
    return {"model": w.sparse, "optimizer": w.optimizer, "total_steps": 40}


def of_model(w: World) -> dict[str, Any]:
    return {"model": w.sparse}


METHOD = {"model": MODELS, "optimizer": OPTIMIZERS, "total_steps": COUNTS, "seed": NOT_COUNTS}
METHOD |= {"process_group": GROUPS}
PERIODIC = {**METHOD, "total_steps": (None, *COUNTS), "update_every": (None, *COUNTS), "skip_step": FLAGS}
DYNAMIC = {
    **PERIODIC,
    "drop_fraction": MAYBE_FRACTIONS,
    "stop_fraction": MAYBE_FRACTIONS,
    "schedule": (5, None, "cosin", "inverse-power-x", "inverse-power-nan", "cosine-to-2", *FUNCTIONS),
    "grow_init": WORDS,
    "grow_scale": POSITIVE,
}
COLUMNS = (0, -1, 1.5, "all", True, NAN)


class Grown(regrow.Dynamic):
    """A method of somebody's own."""

    def grow(self, weight: Any, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


def ticket(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "cycles": 1, "cycle_steps": 10, "explore": 0.5}


def free(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "tickets": 2, "ticket_steps": 10}


def phases(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "count": 2, "length": 10, "rate": lambda progress: 0.1}


def pair(w: World) -> dict[str, Any]:
    return {"probabilities": w.p, "targets": w.y}


def shapes(w: World) -> dict[str, Any]:
    return {"shapes": {"a": (4, 4), "b": (4, 2)}, "sparsity": 0.5}


SHAPES = {"shapes": (5, None, {"a": 4}, {"a": ("x",)}, [(4, 4)]), "sparsity": FRACTIONS}
PREDICTIONS = {"probabilities": (*TENSORS, torch.zeros(5)), "targets": (*TENSORS, torch.zeros(4).long())}
RATES = (5, (), "ab", [0.1, -1.0], [0.1, "a"], [NAN], [True])

TABLE: list[Row] = [
    (
        "sparsify",
        regrow.sparsify,
        lambda w: {"model": w.dense, "sparsity": 0.5},
        {
            "model": MODELS,
            "sparsity": (None, *FRACTIONS),
            "distribution": (*WORDS, None, 0.5, *FUNCTIONS, lambda shapes, sparsity: None),
            "include": PATTERNS,
            "exclude": PATTERNS,
            "init": ("", 0, {}, *WORDS, *FUNCTIONS, lambda model, shapes: [1]),
            "rescale": FLAGS,
            "storage": (None, *WORDS, {"0.weight": 5}),
            "seed": (None, *NOT_COUNTS),
        },
    ),
    (
        "sparsify by masks",
        regrow.sparsify,
        lambda w: {"model": w.dense},
        {
            "init": ({"0.weight": [[True]]}, {0: torch.ones(8, 6)}, {"0.weight": None}),
            "distribution": ({}, {5: 0.5}, {"0": "a"}, {"0": True}, {"0": NAN}, {"9*": 0.5}),
        },
    ),
    ("densify", regrow.densify, of_model, {"model": MODELS}),
    ("masks", regrow.masks, of_model, {"model": MODELS}),
    ("is_sparse", regrow.is_sparse, of_model, {"model": MODELS}),
    ("summary", regrow.summary, of_model, {"model": MODELS}),
    ("fuse", regrow.fuse, of_model, {"model": MODELS}),
    ("unfuse", regrow.unfuse, of_model, {"model": MODELS}),
    ("fold", regrow.fold, of_model, {"model": MODELS}),
    ("compact", regrow.compact, of_model, {"model": MODELS, "inputs": FLAGS}),
    ("compress", regrow.compress, of_model, {"model": MODELS, "optimizer": OPTIMIZERS[1:]}),
    (
        "save",
        regrow.save,
        lambda w: {"model": w.sparse, "file": "never-written.safetensors"},
        {"model": MODELS, "file": (None, 5, "", ["a"])},
    ),
    (
        "load",
        regrow.load,
        lambda w: {"file": w.sparse.state_dict(), "into": w.dense},
        {"file": (None, 5, ["a"], {}), "into": MODELS},
    ),
    ("dense_state_dict", regrow.dense_state_dict, of_model, {"model": MODELS}),
    (
        "costs",
        regrow.costs,
        lambda w: {"model": w.sparse, "example": w.x},
        {
            "model": MODELS,
            "example": (None, 5, "a", torch.zeros(2, 5), []),
            "convention": (None, *WORDS),
            "update_every": (None, *COUNTS),
            "multiplier": (None, *POSITIVE),
            "small_dense": MODELS[1:],
        },
    ),
    (
        "explain",
        regrow.explain,
        lambda w: {"model": w.sparse, "example": w.x},
        {"model": MODELS, "example": (None, 5, "a", []), "seconds": (None, -1.0, "a", NAN, INF, True)},
    ),
    ("Method", Method, both, METHOD),
    ("Static", regrow.Static, both, METHOD),
    ("Grown", Grown, both, DYNAMIC),
    ("RigL", regrow.RigL, both, {**DYNAMIC, "grow_columns": COLUMNS}),
    ("ITOP", regrow.ITOP, both, {"seed": NOT_COUNTS, "update_every": COUNTS, "grow_columns": COLUMNS}),
    ("SetITOP", regrow.SetITOP, both, {"grow_scale": POSITIVE, "grow_columns": COLUMNS}),
    ("SET", regrow.SET, both, {"per_sign": FLAGS, "epoch_end": FLAGS, "schedule": FUNCTIONS}),
    (
        "SET.original",
        regrow.SET.original,
        lambda w: {**both(w), "steps_per_epoch": 4},
        {
            "model": MODELS,
            "total_steps": (None, *COUNTS),
            "steps_per_epoch": (None, *COUNTS),
            "seed": (-1, "a"),
        },
    ),
    (
        "SNFS",
        regrow.SNFS,
        both,
        {"momentum": FRACTIONS, "redistribution": FLAGS, "adjust_prune_rate": FLAGS, "grow_scale": POSITIVE},
    ),
    (
        "GraNet",
        regrow.GraNet,
        lambda w: {**both(w), "final_sparsity": 0.9, "update_every": 4},
        {
            "final_sparsity": (None, *FRACTIONS, {"0.weight": 0.9}, {"0.weight": 0.9, "2.weight": "a"}),
            "scope": WORDS,
            "prune_start_fraction": (None, *MAYBE_FRACTIONS),
            "prune_stop_fraction": (None, *MAYBE_FRACTIONS),
            "process_group": GROUPS,
        },
    ),
    (
        "Pruning",
        regrow.Pruning,
        lambda w: {**both(w), "final_sparsity": 0.9, "update_every": 4},
        {
            **PERIODIC,
            "final_sparsity": (None, *FRACTIONS),
            "start_fraction": (None, *MAYBE_FRACTIONS),
            "stop_fraction": (None, *MAYBE_FRACTIONS),
        },
    ),
    (
        "SNIP",
        regrow.SNIP,
        lambda w: {"loss_fn": loss_fn, "batch": (w.x, w.y)},
        {"loss_fn": FUNCTIONS, "batch": (None, 5, [torch.zeros(2)], "ab"), "mode": WORDS, "per_layer": FLAGS},
    ),
    (
        "SNIP.original",
        regrow.SNIP.original,
        lambda w: {"loss_fn": loss_fn, "batch": (w.x, w.y)},
        {"loss_fn": FUNCTIONS, "batch": (None, 5)},
    ),
    (
        "explore",
        lambda w, fraction: w.method.explore(fraction),
        lambda w: {"w": w},
        {"fraction": MAYBE_FRACTIONS},
    ),
    (
        "evolve",
        lambda w, fraction: w.method.evolve(fraction),
        lambda w: {"w": w},
        {"fraction": MAYBE_FRACTIONS},
    ),
    ("follow", lambda w, copy: w.method.follow(copy), lambda w: {"w": w}, {"copy": MODELS}),
    (
        "register_update_hook",
        lambda w, hook: w.method.register_update_hook(hook),
        lambda w: {"w": w},
        {"hook": (None, *FUNCTIONS)},
    ),
    (
        "register",
        registry.register,
        lambda w: {"name": "tried"},
        {"name": (None, 5, ""), "cost": WORDS, "kind": WORDS},
    ),
    ("get", registry.get, lambda w: {}, {}),
    ("drop_schedule", schedules.drop_schedule, lambda w: {}, {"schedule": (None, 5, "cosin", *FUNCTIONS)}),
    ("inverse_power", schedules.inverse_power, lambda w: {}, {"k": (None, "a", -1.0, NAN, INF, True)}),
    ("cosine_to", schedules.cosine_to, lambda w: {}, {"k": (None, *MAYBE_FRACTIONS)}),
    ("uniform", topology.uniform, shapes, SHAPES),
    ("er", topology.er, shapes, SHAPES),
    ("erk", topology.erk, shapes, SHAPES),
    (
        "distribute",
        topology.distribute,
        lambda w: {**shapes(w), "distribution": "erk"},
        {**SHAPES, "distribution": (None, *WORDS, *FUNCTIONS, lambda shapes, sparsity: {"a": "x", "b": 0.5})},
    ),
    (
        "connections",
        topology.connections,
        lambda w: {"shape": (4, 4), "sparsity": 0.5},
        {"shape": (None, 5, ("a",), (-1, 2)), "sparsity": (None, *MAYBE_FRACTIONS)},
    ),
    ("generator", topology.generator, lambda w: {}, {"seed": (None, *NOT_COUNTS)}),
    (
        "sample",
        topology.sample,
        lambda w: {"count": 2, "population": 5, "generator": topology.generator(0)},
        {"count": (None, 6, *NOT_COUNTS), "population": (None, *NOT_COUNTS), "generator": (None, 5)},
    ),
    (
        "SupTickets",
        regrow.SupTickets,
        ticket,
        {
            "method": (None, 5, "rigl", regrow.RigL),
            "start": (None, 10**9, *COUNTS),
            "cycles": (None, *NOT_COUNTS),
            "cycle_steps": (None, *COUNTS),
            "lr": (None, (0.1,), (0.1, 0.2, 0.3), *RATES),
            "explore": MAYBE_FRACTIONS,
            "evolve": MAYBE_FRACTIONS,
            "average": WORDS,
            "factor": (None, *FRACTIONS),
            "rule": WORDS,
            "divide": WORDS,
            "scope": WORDS,
            "density": (0.0, *MAYBE_FRACTIONS),
        },
    ),
    (
        "FreeTickets",
        regrow.FreeTickets,
        free,
        {
            "method": (None, 5, regrow.RigL),
            "start": (None, 10**9, *NOT_COUNTS),
            "tickets": (None, *COUNTS),
            "ticket_steps": (None, *COUNTS),
            "lr": (None, *RATES),
            "explore": MAYBE_FRACTIONS,
        },
    ),
    (
        "Phases",
        Phases,
        phases,
        {
            "method": (None, 5, regrow.RigL),
            "start": (None, 10**9, *NOT_COUNTS),
            "count": (None, *NOT_COUNTS),
            "length": (None, *COUNTS),
            "rate": (None, *FUNCTIONS),
            "explore": MAYBE_FRACTIONS,
            "explore_first": (None, *FLAGS),
            "evolve": MAYBE_FRACTIONS,
            "check": (5, lambda a: None),
        },
    ),
    (
        "calendar",
        tickets.calendar,
        lambda w: {"total": 250, "share": 0.1, "cycle": 8},
        {"total": (None, *COUNTS), "share": (None, *MAYBE_FRACTIONS), "cycle": (None, *COUNTS)},
    ),
    (
        "Ensemble",
        regrow.Ensemble,
        lambda w: {"models": [w.dense]},
        {"models": (None, 5, [], [5], "ab", nn.Linear(2, 2))},
    ),
    (
        "superpose",
        tickets.superpose,
        lambda w: {"models": [w.sparse, w.sparse]},
        {
            "models": (None, 5, [], [5], "ab", nn.Linear(2, 2)),
            "factors": (5, [1.0], [1.0, -1.0], [1.0, "a"], [1.0, NAN], [True, True]),
            "divide": (None, *WORDS),
        },
    ),
    (
        "prune_back",
        tickets.prune_back,
        of_model,
        {"model": MODELS, "connections": (10**6, [5], {"a": 5}, *NOT_COUNTS), "density": MAYBE_FRACTIONS},
    ),
    (
        "prune_back of layers",
        tickets.prune_back,
        lambda w: {"model": w.sparse, "density": 0.1},
        {"scope": (None, *WORDS)},
    ),
    ("copied", tickets.copied, of_model, {"model": MODELS, "method": (5, "rigl", regrow.RigL)}),
    (
        "reestimate",
        tickets.reestimate,
        lambda w: {"model": w.sparse, "loader": [w.x]},
        {"model": MODELS, "loader": (5, None, "ab")},
    ),
    (
        "probabilities",
        tickets.probabilities,
        lambda w: {"model": w.dense, "batches": [(w.x, w.y)]},
        {"model": MODELS, "batches": (None, 5, [], [5], "ab")},
    ),
    ("accuracy", tickets.accuracy, pair, PREDICTIONS),
    (
        "negative_log_likelihood",
        tickets.negative_log_likelihood,
        pair,
        {**PREDICTIONS, "floor": ("a", -1.0, NAN, True)},
    ),
    (
        "expected_calibration_error",
        tickets.expected_calibration_error,
        pair,
        {**PREDICTIONS, "bins": (None, *COUNTS), "edges": (1, *COUNTS)},
    ),
    (
        "disagreement",
        tickets.disagreement,
        lambda w: {},
        {"predictions": (None, 5, [], [torch.zeros(2, 2)], [[[0.5]], [[0.5]]])},
    ),
    (
        "kl_diversity",
        tickets.kl_diversity,
        lambda w: {},
        {"predictions": (None, 5, [], [torch.zeros(2, 2)], [[[0.5]], [[0.5]]])},
    ),
    ("overlap", tickets.overlap, lambda w: {}, {"models": (None, 5, [], [5], "ab")}),
    (
        "triangular",
        tickets.triangular,
        lambda w: {"progress": 0.5, "low": 0.1, "high": 0.2},
        {"progress": (None, *FRACTIONS), "low": (None, *POSITIVE[1:]), "high": (None, *POSITIVE[1:])},
    ),
    (
        "steps",
        tickets.steps,
        lambda w: {"progress": 0.5, "rates": (0.1,)},
        {"progress": (None, *FRACTIONS), "rates": (None, *RATES)},
    ),
    (
        "Triangular",
        tickets.Triangular,
        lambda w: {"optimizer": w.optimizer, "cycle_steps": 5},
        {
            "optimizer": OPTIMIZERS,
            "cycle_steps": (None, *COUNTS),
            "low": (None, *POSITIVE),
            "high": (None, *POSITIVE),
            "last_epoch": (None, -2, 1.5, "a", True),
        },
    ),
    (
        "StepRestarts",
        tickets.StepRestarts,
        lambda w: {"optimizer": w.optimizer, "cycle_steps": 5},
        {
            "optimizer": OPTIMIZERS,
            "cycle_steps": (None, *COUNTS),
            "rates": (None, *RATES),
            "last_epoch": (-2, "a"),
        },
    ),
    (
        "bezier",
        landscape.bezier,
        lambda w: {"points": [w.x, w.x], "t": 0.5},
        {
            "points": (None, 5, [], [[1.0], [2.0]], [torch.zeros(2), torch.zeros(3)]),
            "t": (None, "a", NAN, True, [0.5]),
        },
    ),
    (
        "Curve",
        landscape.Curve,
        lambda w: {"start": w.sparse, "end": w.dense},
        {"start": MODELS, "end": MODELS, "degree": (None, 4, *COUNTS), "space": (None, *WORDS)},
    ),
    (
        "profile",
        landscape.profile,
        lambda w: {"curve": landscape.Curve(w.dense, w.dense), "loss_fn": loss_fn, "batches": [(w.x, w.y)]},
        {
            "curve": (None, 5, nn.Linear(2, 2)),
            "loss_fn": (None, *FUNCTIONS),
            "batches": (None, 5, "ab", []),
            "points": (None, 1, *COUNTS),
            "norm_batches": (5, "ab"),
        },
    ),
    ("barrier", landscape.barrier, lambda w: {}, {"losses": (None, 5, [], [5], "ab", [(0.0, "a")])}),
    (
        "training_multiple",
        training_multiple,
        lambda w: {"cost": "rigl", "dense": 2.0, "sparse": 1.0},
        {
            "cost": (None, *WORDS),
            "dense": (None, *POSITIVE),
            "sparse": (None, -1.0, "a", NAN, True, *FUNCTIONS[2:]),
            "update_every": (None, *COUNTS),
            "multiplier": (None, *POSITIVE),
        },
    ),
    (
        "training_multiple of pruning",
        training_multiple,
        lambda w: {"cost": "pruning", "dense": 2.0, "sparse": 1.0},
        {"levels": (5, [], "ab", ["a"], [-1.0], [NAN])},
    ),
    (
        "pruning_levels",
        pruning_levels,
        lambda w: {},
        {
            "steps": (None, *COUNTS),
            "begin": NOT_COUNTS,
            "end": COUNTS,
            "every": COUNTS,
            "initial": MAYBE_FRACTIONS,
            "exact": FLAGS,
        },
    ),
    ("granet_levels", granet_levels, lambda w: {}, {"sparsity": (None, *FRACTIONS)}),
    (
        "ticket_multiples",
        ticket_multiples,
        lambda w: {"forward": 0.3, "tickets": 3},
        {
            "forward": (None, *POSITIVE),
            "tickets": (None, *COUNTS),
            "epochs": COUNTS,
            "exploration": NOT_COUNTS,
            "refinement": COUNTS,
            "multiplier": POSITIVE,
        },
    ),
    (
        "stored_size",
        stored_size,
        of_model,
        {
            "model": MODELS,
            "sparsities": (5, ["a"], {"0.weight": "a"}, {"0.weight": 2.0}, {5: 0.5}),
            "convention": WORDS,
        },
    ),
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
    (
        "small_dense",
        models.small_dense,
        lambda w: {"build": models.mlp, "size_megabytes": 0.1},
        {"build": (None, 5, lambda: None), "size_megabytes": (None, *POSITIVE), "convention": WORDS},
    ),
]

CASES = [
    pytest.param(function, base, argument, value, id=f"{name}-{argument}-{place}")
    for name, function, base, bad in TABLE
    for argument, values in bad.items()
    for place, value in enumerate(values)
]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(("function", "base", "argument", "value"), CASES)
def test_a_bad_argument_is_refused_by_its_name(
    world: World, function: Callable[..., Any], base: Base, argument: str, value: Any
) -> None:
    arguments = {**base(world), argument: value}
    plain, tensors = world.state()
    with pytest.raises(regrow.RegrowError, match=rf"`(data\.|schedule\.|augment\.|\w+ )?{argument}\b"):
        function(**arguments)
    plain_after, tensors_after = world.state()
    assert plain_after == plain
    assert all(map(torch.equal, tensors_after, tensors))


def test_there_are_enough_bad_arguments() -> None:
    assert len(CASES) >= 250


# --- good arguments in unusual types

THREE = (3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0), Fraction(3))


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_a_seed_of_another_type_gives_the_same_topology(three: Any) -> None:
    plain = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False, seed=3))
    other = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False, seed=three))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert topology.generator(three, "a").initial_seed() == topology.generator(3, "a").initial_seed()


def trained(seed: Any, every: Any, total: Any, drop: Any = 0.5) -> dict[str, Tensor]:
    model = regrow.sparsify(network(), 0.5, rescale=False, storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.SET(
        model,
        optimizer,
        total_steps=total,
        update_every=every,
        drop_fraction=drop,
        seed=seed,
        stop_fraction=1,
    )
    x, y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    for _ in range(8):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    assert type(method.seed) is type(method.update_every) is type(method.total_steps) is int
    return regrow.masks(model)


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_a_method_takes_whole_numbers_of_another_type_for_what_they_are(three: Any) -> None:
    plain, other = trained(3, 3, 9), trained(three, three, 3 * three)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_share_of_another_type_is_that_share(half: Any) -> None:
    plain = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False))
    other = regrow.masks(regrow.sparsify(network(), half, rescale=False))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    plain, other = trained(0, 2, 9), trained(0, 2, 9, half)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_sizes_steps_and_places_of_another_type_are_those_numbers(three: Any) -> None:
    assert tickets.calendar(30 * three, 0.5, three) == tickets.calendar(90, 0.5, 3)
    assert pruning_levels(10, 1, 9, three) == pruning_levels(10, 1, 9, 3)
    assert models.mlp(three, (three,), three).layers[0].weight.shape == (3, 3)
    assert rates.step(40, milestones=[three])(3) == rates.step(40, milestones=[3])(3) == 0.1
    assert data.Augment(crop=three) == data.Augment(crop=3)
    assert torch.equal(data.order(three, three, 5 + three), data.order(3, 3, 8))
    images = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
    plain = data.corrupt(images, "gaussian_noise", 3, seed=3, start=3)
    assert torch.equal(data.corrupt(images, "gaussian_noise", three, seed=three, start=three), plain)
    layer = regrow.SparseLinear(three, three, positions=torch.tensor([0, 4]), values=torch.ones(2))
    assert layer.weight.shape == (3, 3)
    method = regrow.RigL(*_sparse(), total_steps=400, grow_columns=np.int64(3))
    assert method.searched(5) == 3


def _sparse() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = regrow.sparsify(network(), 0.5, rescale=False, storage="masked")
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_numpy_flags_and_words_are_taken() -> None:
    method = regrow.SET(*_sparse(), total_steps=10, update_every=2, per_sign=np.bool_(True), skip_step=False)
    assert method.per_sign is True
    assert regrow.sparsify(network(), 0.5, np.str_("er"), rescale=np.bool_(False)) is not None


def test_a_class_in_place_of_what_it_makes_is_told_so() -> None:
    with pytest.raises(
        ValueError, match=r"`model` must be a torch.nn.Module, got the class Linear\nMake one: Linear"
    ):
        regrow.masks(nn.Linear)  # type: ignore[arg-type]


def test_a_function_of_other_arguments_is_shown_with_what_it_is_called_with() -> None:
    with pytest.raises(
        ValueError,
        match=r"`distribution` must be a function \(shapes, sparsity\), got the function <lambda>\(a\): too many",
    ):
        regrow.sparsify(network(), 0.5, lambda a: a)  # type: ignore[arg-type, misc]


def test_functions_that_python_cannot_look_into_are_taken() -> None:
    assert schedules.drop_schedule(abs)(0.5) == 0.5  # type: ignore[arg-type]


def test_a_start_of_tickets_that_the_method_never_reaches_is_refused(world: World) -> None:
    with pytest.raises(
        ValueError, match=r"`start` must be at most 40, the `total_steps` of the method, got 1000000000"
    ):
        regrow.SupTickets(world.method, start=10**9, cycles=0, cycle_steps=5)


def test_compress_refuses_the_optimizer_of_another_model() -> None:
    model, _ = _sparse()
    with pytest.raises(
        RuntimeError, match=r"`optimizer` holds none of \['0.weight', '2.weight'\].*\nGive the one"
    ):
        regrow.compress(model, _sparse()[1])
    assert regrow.summary(model).rows[0].storage == "masked"


def test_a_process_group_is_taken_where_processes_run() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        group = torch.distributed.new_group([0])
        assert regrow.Static(*_sparse(), process_group=group).process_group is group
        outside = torch.distributed.GroupMember.NON_GROUP_MEMBER
        with pytest.raises(ValueError, match=r"`process_group` must be .*which this one does not belong to"):
            regrow.Static(*_sparse(), process_group=outside)
    finally:
        torch.distributed.destroy_process_group()

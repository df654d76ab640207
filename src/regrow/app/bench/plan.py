"""From the options of ``regrow bench`` to the cases that are measured; everything is checked before any is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from regrow.app.bench import inference, layers, memory, networks, recurrent, scale, updates
from regrow.app.bench.conv import Convolution, convolutions
from regrow.app.bench.linear import Linear, linears
from regrow.app.bench.rows import Case, Settings
from regrow.app.recipes import import_file
from regrow.arguments import require_choice, require_count, require_fraction
from regrow.errors import RegrowValueError, closest
from regrow.ops import backends
from regrow.sparsity.distributions import DISTRIBUTIONS
from regrow.sparsity.storage import choices

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in backends.DTYPES}
BATCH = 128


@dataclass(frozen=True)
class Standard:
    """What is measured where the options leave it open."""

    layers: tuple[Linear, ...]
    convolutions: tuple[tuple[Convolution, int], ...]
    """With the batch of each."""
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]
    mlps: tuple[tuple[int, int], ...]
    """Width and batch."""
    zoo: tuple[tuple[str, tuple[int, ...]], ...]
    """Networks whose steps are measured, and the sizes of their inputs."""
    texts: tuple[tuple[recurrent.Text, tuple[int, ...]], ...]
    """Recurrent networks whose steps are measured, with the batches of each."""
    updated: tuple[Linear, ...]
    remembered: tuple[Linear, ...]
    """Layers whose memory is measured."""
    sizes: tuple[int, ...]
    deployed: tuple[inference.Network, ...]
    """Networks whose inference is measured."""
    served: tuple[int, ...]
    """Batches of inference."""
    seconds: float


FULL = Standard(
    layers=(Linear(1024, 1024), Linear(4096, 1024), Linear(4096, 4096)),
    convolutions=(
        (Convolution(32, 32, 32), 128),
        (Convolution(64, 64, 16), 128),
        (Convolution(128, 128, 8), 128),
        (Convolution(64, 64, 56), 32),
        (Convolution(128, 128, 28), 64),
        (Convolution(256, 256, 14), 64),
        (Convolution(64, 256, 56, 1), 32),
        (Convolution(256, 1024, 14, 1), 128),
    ),
    batches=(1, 8, 32, 128, 512),
    sparsities=(0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    mlps=((1024, 100), (4096, 128)),
    zoo=(("wrn-22-2", (128, 3, 32, 32)), ("vgg16", (128, 3, 32, 32)), ("resnet50", (32, 3, 64, 64))),
    texts=(
        (recurrent.Text("char-gru", 256, 128), (32, 128)),
        (recurrent.Text("stacked-lstm", 256, 35), (20, 128)),
        (recurrent.Text("stacked-lstm", 10_000, 35), (20, 128)),
    ),
    updated=(Linear(1024, 1024), Linear(4096, 4096)),
    remembered=(Linear(16384, 16384),),
    sizes=scale.SIZES,
    deployed=inference.STANDARD,
    served=(1, 4, 16, 64),
    seconds=1.0,
)
QUICK = replace(
    FULL,
    layers=(Linear(1024, 1024),),
    convolutions=((Convolution(64, 64, 16), BATCH),),
    batches=(BATCH,),
    sparsities=(0.8, 0.9, 0.99),
    mlps=((1024, 100),),
    zoo=(),
    texts=((recurrent.Text("char-gru", 256, 128), (32,)),),
    updated=(Linear(1024, 1024),),
    remembered=(Linear(4096, 4096),),
    sizes=scale.SIZES[:5],
    deployed=inference.QUICK,
    served=(1, 16),
    seconds=0.2,
)
DISTRIBUTED = ("uniform", "erk")
DEEP = (0.9,)
"""The sparsity at which memory and scale are measured unless others are named."""
TRAINED = (0.8, 0.9, 0.95)
"""Those at which inference is."""
OF_TEXT = (0.75, 0.9, 0.95, 0.98)
"""Those at which recurrent networks are."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how."""

    settings: Settings
    cases: tuple[Case, ...]


def plan(
    *,
    linear: Sequence[str] = (),
    conv: Sequence[str] = (),
    batch: Sequence[str] = (),
    sparsity: Sequence[str] = (),
    model: str | None = None,
    input_: str | None = None,
    storage: str = "auto",
    distribution: Sequence[str] = (),
    what: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    seconds: float | None = None,
    compiled: bool = True,
    quick: bool = False,
    files: Sequence[str] = (),
) -> Plan:
    """Return the plan that these options of the command make; texts may hold several values divided by commas.

    Args:
        linear: layers, outputs before inputs: ``768x3072``. Default: the standard ones.
        conv: convolutions, ``64x64x16``: outputs, inputs, side, then kernel (3) and stride (1) where they differ.
        batch: batch sizes. Default: the standard ones.
        sparsity: sparsities. Default: the standard ones.
        model: a network of the user's own, ``package.module:function``.
        input_: sizes of its input, batch first.
        storage: of the user's network, as for `regrow.sparsify`.
        distribution: of the connections over the layers of networks that are not multilayer perceptrons; by default
            all of `DISTRIBUTED`, in inference the network's own, or uniform.
        what: of `WHAT`. Default: what is named, or all but those of `ASKED`.
        threads: of torch. Default: as many as torch takes; in inference one, and as many as torch takes.
        dtype: of `DTYPES`.
        seconds: how long each way is measured.
        compiled: whether torch.compile is tried on the dense side.
        quick: a small standard set, measured shortly.
        files: the user's Python files to import first.

    Raises:
        RegrowValueError: for whatever is not allowed.
    """
    for file in files:
        import_file(Path(file))
    standard = QUICK if quick else FULL
    if linear:
        named = tuple(linears(",".join(linear)))
        standard = replace(standard, layers=named, updated=named, remembered=named)
    if conv:
        own = tuple((layer, BATCH) for layer in convolutions(",".join(conv)))
        standard = replace(standard, convolutions=own)
    require_choice("--storage", storage, choices())
    require_choice("--dtype", dtype, sorted(DTYPES))
    for name in (distributions := _words(distribution)):
        require_choice("--distribution", name, DISTRIBUTIONS)
    settings = Settings(
        DTYPES[dtype],
        torch.get_num_threads() if threads is None else require_count("--threads", threads),
        standard.seconds if seconds is None else _positive("--seconds", seconds),
        compiled,
    )
    batches, sparsities = _batches(batch), _sparsities(sparsity)
    kinds = _kinds(what, bool(linear), bool(conv), model is not None)
    trains = kinds != ["inference"]
    _require_a_part("--linear", bool(linear), bool({"layers", "updates", "memory"} & set(kinds)), kinds)
    _require_a_part("--conv", bool(conv), "convolutions" in kinds, kinds)
    _require_a_part("--storage", storage != "auto", model is not None and trains, kinds)
    _require_a_part("--dtype", dtype != "float32", trains, kinds)
    _require_a_part("--distribution", bool(distribution), bool({"steps", "inference"} & set(kinds)), kinds)
    if (model is None) != (input_ is None):
        raise RegrowValueError(
            f"`--model` and `--input` belong together, got {model or input_} alone\n"
            "Give both: --model package.module:function --input 128,3,32,32."
        )
    if model is not None and trains and (kinds != ["steps"] or batches):
        raise RegrowValueError(
            f"`--model` {model} is measured by steps or inference alone, in steps its batch is the first size of "
            "--input\nLeave out --what, --linear, --conv and --batch, or give --what inference."
        )
    given = Given(standard, settings, batches, sparsities, distributions, threads)
    if model is not None and input_ is not None:
        sizes = whole_numbers("--input", input_)
        if trains:
            return Plan(settings, tuple(given.network(model, networks.tried(model, sizes), storage)))
        network = inference.own(model, sizes, files)
        given = replace(given, standard=replace(standard, deployed=(network,), served=sizes[:1]))
    return Plan(settings, tuple(case for kind in kinds for case in WHAT[kind](given)))


@dataclass(frozen=True)
class Given:
    """The standard set, and what the options put in the place of its parts; empty where they are silent."""

    standard: Standard
    settings: Settings
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]
    distributions: tuple[str, ...]
    threads: int | None = None

    def layers(self) -> list[Case]:
        """Plan forward and backward passes of layers."""
        sparsities = self.sparsities or self.standard.sparsities
        return [
            Case(f"{layer}, batch {batch}", partial(layers.measure, layer, batch, sparsities, self.settings))
            for layer in self.standard.layers
            for batch in self.batches or self.standard.batches
        ]

    def convolutions(self) -> list[Case]:
        """Plan forward and backward passes of convolutions."""
        sparsities = self.sparsities or self.standard.sparsities
        return [
            Case(f"{layer}, batch {size}", partial(layers.measure, layer, size, sparsities, self.settings))
            for layer, batch in self.standard.convolutions
            for size in self.batches or (batch,)
        ]

    def steps(self) -> list[Case]:
        """Plan training steps of the standard networks."""
        perceptrons = [
            self.step(networks.mlp(width, size))
            for width, batch in self.standard.mlps
            for size in self.batches or (batch,)
        ]
        zoo = [
            case
            for name, (batch, *image) in self.standard.zoo
            for size in self.batches or (batch,)
            for case in self.network(name, torch.randn(size, *image), "auto")
        ]
        return perceptrons + zoo

    def network(self, name: str, x: Tensor, storage: str) -> list[Case]:
        """Plan training steps of a network on `x` with each distribution."""
        distributions = self.distributions or DISTRIBUTED
        return [self.step(networks.own(name, x, storage, each)) for each in distributions]

    def step(self, network: networks.Network) -> Case:
        """Plan training steps of one network."""
        sparsities = self.sparsities or self.standard.sparsities
        return Case(
            f"training steps of {network.name}",
            partial(networks.measure, network, sparsities, self.settings),
        )

    def recurrent(self) -> list[Case]:
        """Plan training steps of recurrent networks, and their recurrent layers alone."""
        sparsities = self.sparsities or OF_TEXT
        return [
            Case(
                f"recurrent layers and training steps of {text}, batch {size}",
                partial(recurrent.measure, text, size, sparsities, self.settings),
            )
            for text, batches in self.standard.texts
            for size in self.batches or batches
        ]

    def updates(self) -> list[Case]:
        """Plan topology updates."""
        sparsities = self.sparsities or self.standard.sparsities
        return [
            Case(
                f"updates of {layer}, batch {batch}",
                partial(updates.measure, layer, batch, sparsities, self.settings),
            )
            for layer in self.standard.updated
            for batch in self.batches or (BATCH,)
        ]

    def memory(self) -> list[Case]:
        """Plan measurements of peak memory."""
        return [
            Case(
                f"memory of {layer}, batch {batch}",
                partial(memory.measure, layer, batch, self.sparsities or DEEP, self.settings),
            )
            for layer in self.standard.remembered
            for batch in self.batches or (BATCH,)
        ]

    def scale(self) -> list[Case]:
        """Plan layers of growing size."""
        return [
            Case(f"{size:,} connections", partial(scale.measure, size, batch, sparsity, self.settings))
            for sparsity in self.sparsities or (*DEEP, None)
            for batch in self.batches or (scale.BATCH,)
            for size in self.standard.sizes
        ]

    def inference(self) -> list[Case]:
        """Plan inference on all engines."""
        batches = self.batches or self.standard.served
        threads = dict.fromkeys((1, self.settings.threads) if self.threads is None else (self.threads,))
        among = inference.installed(self.settings.compiled)
        missing = inference.not_installed()
        first = [Case("engines that are not installed", lambda: missing)] if missing else []
        return first + [
            Case(
                f"inference of {network}, {sparsity:.0%} zeros",
                partial(inference.measure, network, sparsity, batches, tuple(threads), self.settings, among),
            )
            for one in self.standard.deployed
            for network in one.distributed(self.distributions)
            for sparsity in self.sparsities or TRAINED
        ]


WHAT: dict[str, Callable[[Given], list[Case]]] = {
    "layers": Given.layers,
    "convolutions": Given.convolutions,
    "steps": Given.steps,
    "recurrent": Given.recurrent,
    "updates": Given.updates,
    "memory": Given.memory,
    "scale": Given.scale,
    "inference": Given.inference,
}
ASKED = ("recurrent", "scale", "inference")
"""Those that are measured only where they are named: they take long."""


def _kinds(what: str | None, linear_named: bool, conv_named: bool, model_named: bool) -> list[str]:
    if what is None:
        named = {"layers": linear_named, "convolutions": conv_named, "steps": model_named}
        return [kind for kind, one in named.items() if one] or [kind for kind in WHAT if kind not in ASKED]
    kinds = list(_words([what]))
    for kind in kinds:
        if kind not in WHAT:
            raise RegrowValueError(
                f"`--what` must be of {', '.join(WHAT)}, got {kind!r}{closest(kind, WHAT)}"
            )
    return kinds


def _require_a_part(option: str, given: bool, has_one: bool, kinds: Sequence[str]) -> None:
    if given and not has_one:
        raise RegrowValueError(f"`{option}` has no part in what is measured: {', '.join(kinds)}")


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers in ``1,8,128``.

    Raises:
        RegrowValueError: text that holds something else, or a number below 1.
    """
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise RegrowValueError(
            f"`{option}` must be whole numbers above 0 divided by commas, such as 1,8,128, got {text!r}"
        )
    return found


def _words(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for text in texts for word in text.split(","))


def _batches(texts: Sequence[str]) -> tuple[int, ...]:
    return whole_numbers("--batch", ",".join(texts)) if texts else ()


def _sparsities(texts: Sequence[str]) -> tuple[float, ...]:
    words = ",".join(texts).split(",") if texts else []
    try:
        return tuple(require_fraction("--sparsity", float(word)) for word in words)
    except ValueError as error:
        if isinstance(error, RegrowValueError):
            raise
        raise RegrowValueError(
            f"`--sparsity` must be numbers in [0, 1) divided by commas, such as 0.8,0.9, got {','.join(texts)!r}"
        ) from error


def _positive(option: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise RegrowValueError(f"`{option}` must be above 0, got {value}")
    return value

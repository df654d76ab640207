"""The keys of a recipe, their types and defaults."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from regrow._text import either
from regrow.methods.registry import DEFAULT, methods
from regrow.tickets import kinds
from regrow.tricks import tricks

_STARTS = [
    f"{start:g} for {name}"
    for start, name in sorted(
        (r.starts_from(0.9), n) for n, r in methods().items() if r.initial_sparsity is not None
    )
]
"""Where each method starts that prunes to 90%."""

OWN = "own"
"""The value of `validation` for data that have a part of their own for that."""


class Part(BaseModel):
    """Something with a name and options: ``rigl``, or ``{name: rigl, update_every: 50}``.

    The name is a built-in one, one registered by an imported file, or ``package.module:function``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @model_serializer
    def _plain(self) -> Any:
        return {"name": self.name, **self.options} if self.options else self.name


class Recipe(BaseModel):
    """One training run. Steps are optimizer steps; `batch_size` and `drop_last` say how many make an epoch."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(description="what the run folder is called after; default: the file's name")
    line: str = Field("", description="one line of description")
    imports: list[str] = Field(
        [], description="Python files that register methods or hold functions named here"
    )
    model: Part = Field(description="a network, and its options")
    data: Part = Field(description="a data set, and its options")
    augment: dict[str, Any] = Field(
        {}, description="what is done to training images: crop, border, flip, resized_crop, scale, ratio"
    )
    validation: Any = Field(
        None,
        description="share of the training examples held out, and tested instead of the test set; or own: the part "
        "that the data have for that, as texts do",
    )
    test_on: Literal["validation", "test"] | None = Field(
        None,
        description="what the result is tested on where `validation` holds examples out: these, or the test set; "
        "default: these, but the test set for tickets",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the weights that are the result: the last, or those that are best in `validation`",
    )
    sparsify: dict[str, Any] = Field({}, description="the arguments of `regrow.sparsify`")
    method: Part = Field(
        Part(name=DEFAULT), description="how the topology evolves; `dense` for a dense network"
    )
    never_dense: bool = Field(
        False, description="the network is made from its connections: its dense weights never exist"
    )
    initial_sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="what a method that prunes in training starts from: by default, on the way to 90%, "
        + ", ".join(_STARTS),
    )
    samples: dict[str, Any] = Field(
        {},
        description="the samples that a run of text writes at its end: count, length, temperature, prompt",
    )
    tricks: list[Part] = Field(
        [],
        description=f"what helps the training and is not in the network at its end: {either(tricks(), 'and')}",
    )
    tickets: Part | None = Field(
        None,
        description=f"several networks in one run: {either(kinds())}; milestones of `schedule` move along",
    )
    optimizer: Part = Field(
        description="a class of torch.optim, or NTASGD or SNTASGD of regrow, and its options"
    )
    no_decay: list[str] = Field(
        [], description="what weight decay leaves alone: norms, biases, depthwise, embeddings, globs of names"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient of a step")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the training target that is spread evenly over the classes"
    )
    schedule: Part = Field(Part(name="constant"), description="learning rate: constant, cosine or step")
    batch_size: int = Field(gt=0, description="examples a step")
    drop_last: bool = Field(
        True, description="whether the last examples of an epoch are left out that make no whole batch"
    )
    accumulate: int = Field(
        1,
        gt=0,
        description="parts of a batch that pass through the network one after another, to save memory",
    )
    test_batch_size: int | None = Field(
        None,
        gt=0,
        description="examples of a test at a time; default: as many as their inputs allow, at most 1,000",
    )
    epochs: int | None = Field(None, gt=0, description="length of the run, or `steps`")
    steps: int | None = Field(None, gt=0, description="length of the run in optimizer steps")
    start: str | None = Field(
        None,
        description="the file of a network, such as a run's model.safetensors, with whose weights and connections the "
        "run begins in place of new ones",
    )
    first_step: int = Field(
        0, ge=0, description="the step at which the run begins, with that step's learning rate and batch"
    )
    last_step: int | None = Field(
        None, gt=0, description="the step before which the run ends; default: its length"
    )
    early: dict[str, Any] = Field(
        {},
        description="end the run as soon as the mask of a ticket drawn by then settles, looked at after each epoch: "
        "sparsity, distance, masks, score, distribution",
    )
    seed: int = Field(0, ge=0, description="of initial weights, topology and order of data")
    device: str = Field("auto", description="a torch device; auto: cuda where there is one, else cpu")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is torch.autocast")
    compile: bool = Field(False, description="torch.compile the model")
    channels_last: bool = Field(
        False,
        description="the weights of convolutions, and so all that they put out, in torch's channels-last layout",
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; default: torch's own choice")
    log_every: int = Field(100, gt=0, description="steps between two readings of the loss")
    evaluate_every: int | None = Field(None, gt=0, description="steps between two tests; default: an epoch")
    checkpoint_every: int | None = Field(
        None, gt=0, description="steps between two checkpoints; default: an epoch"
    )
    out: str | None = Field(None, description="the run folder; default: runs/<recipe>-<method>-<time>")

    @field_validator("validation")
    @classmethod
    def _share_or_own(cls, value: Any) -> float | str | None:
        if value is None or value == OWN:
            return OWN if value else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"must be a share between 0 and 1, or {OWN}")
        return float(value)

    @model_validator(mode="after")
    def _plain_name(self) -> Recipe:
        if not re.fullmatch(r"[^\W.][^/\\\x00-\x1f\x7f\ud800-\udfff]{0,99}", self.name):
            raise ValueError(
                "`name` must be a plain name of at most 100 characters that begins with a letter or digit, because run "
                f"folders are called after it, got {self.name[:100]!r}\nTake out slashes, and dots at the beginning."
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            given = "both" if self.epochs is not None else "none"
            raise ValueError(f"give `epochs` or `steps`, one of the two, got {given}")
        return self

    @model_validator(mode="after")
    def _even_parts(self) -> Recipe:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"`batch_size` must be a multiple of `accumulate`, got {self.batch_size} and {self.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Recipe:
        for key in ("keep", "test_on"):
            if self.validation is None and getattr(self, key) in ("best", "validation"):
                raise ValueError(
                    f"`{key}: {getattr(self, key)}` needs examples that are held out\nAdd `validation: 0.1`."
                )
        if self.keep == "best" and self.tickets is not None:
            raise ValueError("`keep: best` is not for `tickets`, which say themselves what they keep")
        return self

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Recipe:
        if self.last_step is not None and self.last_step <= self.first_step:
            raise ValueError(
                f"`last_step` must be above `first_step`, got {self.last_step} and {self.first_step}"
            )
        if self.never_dense and self.start is not None:
            raise ValueError(
                "`never_dense` makes a new network from its connections, and `start` begins with another\n"
                "Leave one of them out."
            )
        if self.early and (self.keep == "best" or self.tickets is not None):
            raise ValueError(
                "`early` ends a run at its last weights, and is not for `keep: best` or `tickets`\nLeave `early` out."
            )
        if self.tickets is not None and (self.start, self.first_step, self.last_step) != (None, 0, None):
            raise ValueError(
                "`start`, `first_step` and `last_step` are not for `tickets`\nLeave them out, or `tickets`."
            )
        return self

    @property
    def tested_on(self) -> str:
        """What the result is tested on: ``validation`` or ``test``."""
        if self.validation is None:
            return "test"
        return self.test_on or ("validation" if self.tickets is None else "test")

    def plain(self) -> dict[str, Any]:
        """Return the recipe as YAML would hold it: only plain values."""
        return self.model_dump(mode="json")

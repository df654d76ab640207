"""What is measured in a task: the metrics by name, how each is written, and whether high or low is good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regrow.errors import RegrowValueError

T = TypeVar("T")

_TABLE = "n mean deviation values multiplier length training test memory needs_dense cell run curve"
_SUMMARY = (
    "format recipe method seed task test_loss tested tested_on connections parameters sparsity reference time_is steps "
    "steps_per_epoch moved seconds device threads precision peak_memory_megabytes flops networks tickets"
)
_LOG = "kind step epoch total loss rate on index taken overlap together model"
RESERVED = frozenset(f"{_TABLE} {_SUMMARY} {_LOG}".split())
"""Keys of logs, summaries and tables, beside which the metrics stand."""


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is.

    Raises:
        RegrowValueError: a name that is not an identifier of Python, or that logs and summaries use already.
    """

    name: str
    """In logs, summaries and tables."""
    higher_is_better: bool = False
    form: str = ".4g"
    """How it is written, as `format` takes it; one that ends in % is a share in [0, 1] and shown in percent."""
    is_loss: bool = False
    """Whether it is the loss of what is tested, which logs call ``loss``."""
    label: str = ""
    """In the text of a summary; default: the name."""
    meaning: str = ""
    """Beneath tables, in words; default: none."""
    unit: str = ""
    """At the axis of a picture; default: the name."""
    values: str = "values"
    """Key of the numbers of all runs in a table."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in RESERVED:
            raise RegrowValueError(
                f"`name` of a metric must be letters and digits, and not one of {', '.join(sorted(RESERVED))}, "
                f"got {self.name!r}"
            )

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.form.endswith("%")

    @property
    def logged(self) -> str:
        """The name in ``metrics.jsonl``."""
        return "loss" if self.is_loss else self.name

    @property
    def kept(self) -> str:
        """The name in a checkpoint's status."""
        return "test_loss" if self.is_loss else self.name

    def score(self, value: float) -> float:
        """Return `value` so that higher is better."""
        return value if self.higher_is_better else -value

    def better(self, value: float, than: float) -> bool:
        """Return whether `value` is better; every number is better than nan."""
        return self.score(value) > self.score(than) or (math.isnan(than) and not math.isnan(value))

    def best(self, found: Sequence[T], value: Callable[[T], float]) -> T:
        """Return the best of `found` by `value`, the first of equals."""
        best = found[0]
        for one in found[1:]:
            if self.better(value(one), value(best)):
                best = one
        return best

    def text(self, value: float) -> str:
        """Write `value`: ``93.10%``."""
        return format(value, self.form)

    def shown(self, value: float) -> float:
        """Return `value` as tables and pictures show it: in percent, or as it is."""
        return 100 * value if self.percent else value

    def number(self, shown: float, sign: str = "") -> str:
        """Write what `shown` returned, without a unit: ``93.10``."""
        return format(shown, sign + self.form.replace("%", "f"))

    @property
    def head(self) -> str:
        """The head of a table's column."""
        return f"{self.name} %" if self.percent else self.name

    @property
    def points(self) -> str:
        """The word behind a difference."""
        return " points" if self.percent else ""


@dataclass(frozen=True)
class Measures:
    """What is measured in a task; `summary.json` holds it for tasks that do not come with regrow."""

    task: str
    metrics: tuple[Metric, ...]
    """The first says which of two networks is better."""
    loss: str
    """What the training loss is, at the axis of a picture."""
    differences: tuple[Metric, ...] = ()
    """What is measured between the predictions of two networks."""

    def __post_init__(self) -> None:
        names = [metric.name for metric in (*self.metrics, *self.differences)]
        if not self.metrics or len(set(names)) < len(names) or sum(m.is_loss for m in self.metrics) > 1:
            raise RegrowValueError(
                "`metrics` must be at least one, of different names, and at most one of them the loss, "
                f"got {', '.join(names) or 'none'}"
            )

    @property
    def best(self) -> Metric:
        """The metric that says which of two networks is better."""
        return self.metrics[0]

    @property
    def further(self) -> tuple[Metric, ...]:
        """All metrics but that."""
        return self.metrics[1:]

    @property
    def loss_metric(self) -> Metric | None:
        """The metric that is the loss of what is tested, if there is one."""
        return next((metric for metric in self.metrics if metric.is_loss), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Measures:
        """Read what `to_dict` returned."""
        metrics, differences = (
            tuple(Metric(**one) for one in state[key]) for key in ("metrics", "differences")
        )
        return cls(state["task"], metrics, state["loss"], differences)

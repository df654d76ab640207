"""What a name in ``--methods`` stands for: a method, or one whose runs make several tickets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from regrow.app.compare.keys import Key
from regrow.app.recipes import Part, Recipe, method_of
from regrow.methods.registry import DEFAULT, records
from regrow.tickets import kind_of, kinds


@dataclass(frozen=True)
class Way:
    """A method, and the kind of tickets that its runs make, if they do: ``<tickets>-rigl``."""

    method: str
    tickets: str | None = None

    def ticket_options(self) -> set[str]:
        """Return the options that the recipe's `tickets` may have."""
        return set() if self.tickets is None else kind_of(self.tickets).options


def way_of(name: str, own: Part) -> Way:
    """Return what `name` stands for.

    A registered method or a ``package.module:function`` is itself. A kind of tickets, a dash and ``set`` are SET with
    such tickets; a kind alone is with the method that its record names, or with the recipe's `own`, or with RigL where
    that does not drop and grow.
    """
    kind, dash, method = name.partition("-")
    if name in records() or kind not in kinds() or (dash and not method):
        return Way(name)
    alone = kinds()[kind].method or (own.name if is_dynamic(own.name) else DEFAULT)
    return Way(method or alone, kind)


def is_dynamic(method: str) -> bool:
    """Return whether a method drops and grows."""
    return method_of(Part(name=method)).explores


def overrides(way: Way, recipe: Recipe, shared: dict[str, Any], keys: Sequence[Key]) -> list[str]:
    """Return the ``key=value`` that make `recipe` one of `way`.

    Tickets take the recipe's own options where they are of its kind. Otherwise method and schedule are as the kind's
    record has them, as published, where recipe and keys do not say otherwise.

    Args:
        way: the method, and the tickets.
        recipe: of the comparison.
        shared: options for the method.
        keys: those meant for it.
    """
    given = recipe.tickets is not None and recipe.tickets.name == way.tickets
    lines = []
    if way.tickets is not None and not given:
        kind = kind_of(way.tickets)
        if is_dynamic(way.method):
            shared = {**shared, **kind.method_options}
        if kind.schedule and not any(key.key.partition(".")[0] == "schedule" for key in keys):
            warmup = recipe.schedule.options.get("warmup_steps", 0)
            lines.append(f"schedule={_flow({'name': kind.schedule, 'warmup_steps': warmup})}")
    if way.tickets is None:
        lines.append("tickets=null")
    else:
        options = recipe.tickets.options if given and recipe.tickets is not None else {}
        lines.append(f"tickets={_flow({'name': way.tickets, **options})}")
    return [f"method={_flow({'name': way.method, **shared}) if shared else way.method}", *lines]


def _flow(value: dict[str, Any]) -> str:
    """Return `value` on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()

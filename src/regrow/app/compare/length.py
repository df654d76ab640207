"""Training M times as long: the length, and with it every moment of the schedule that is counted in steps."""

from __future__ import annotations

from typing import Any

from regrow.app.recipes import Part, Recipe
from regrow.errors import RegrowValueError


def multiply(recipe: Recipe, multiplier: float) -> list[str]:
    """Return the overrides that make `recipe` `multiplier` times as long.

    Length, milestones and warm-up of the learning rate, moments of the method (``..._step``, ``..._steps``) and the
    windows of tickets are multiplied; T_end is a share of the length and so follows; ``update_every`` stays, as in the
    RigL article.

    Raises:
        RegrowValueError: epochs that would be no whole number.
    """
    if multiplier == 1:
        return []
    result = []
    if recipe.epochs is not None:
        epochs = recipe.epochs * multiplier
        if abs(epochs - round(epochs)) > 1e-9 or round(epochs) < 1:
            raise RegrowValueError(
                f"`--multiplier` {multiplier:g} makes {recipe.epochs} epochs {epochs:g}, no whole number\n"
                "Give the length in steps: steps=1000."
            )
        result.append(f"epochs={round(epochs)}")
    else:
        result.append(f"steps={max(1, round((recipe.steps or 0) * multiplier))}")
    for key in ("schedule", "method", "tickets"):
        part: Part | None = getattr(recipe, key)
        for name, value in part.options.items() if part else ():
            longer = _longer(value, multiplier)
            if _is_moment(key, name) and longer is not None and longer != value:
                result.append(f"{key}.{name}={longer}")
    return result


def _is_moment(part: str, option: str) -> bool:
    """Return whether an option says when something happens, counted in steps or epochs."""
    if part != "method":
        return option == "milestones" or option.endswith(("_steps", "_epochs", "_step", "_epoch"))
    return option.endswith(("_steps", "_step"))


def _longer(value: Any, multiplier: float) -> Any:
    if isinstance(value, list) and value and all(type(v) in (int, float) for v in value):
        return [_longer(v, multiplier) for v in value]
    if type(value) is int:
        return round(value * multiplier)
    if type(value) is float:
        return value * multiplier
    return None

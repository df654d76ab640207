"""What the tricks of a recipe need of the rest of it."""

from __future__ import annotations

from regrow.app.recipes.schema import Recipe
from regrow.errors import RegrowValueError
from regrow.tricks import tricks


def check_tricks(recipe: Recipe) -> None:
    """Refuse tricks, all of known names, that do not go together with each other or with the rest of the recipe.

    Raises:
        RegrowValueError: naming both keys.
    """
    names = [part.name for part in recipe.tricks]
    for name in names:
        if names.count(name) > 1:
            raise RegrowValueError(f"`tricks` has {name} twice\nGive it once, with all its options.")
    if recipe.label_smoothing and "label-smoothing" in names:
        raise RegrowValueError(
            "`label_smoothing` and the trick label-smoothing both smooth the targets\nGive one of them."
        )
    if recipe.compile and any(tricks()[name].is_ghost for name in names):
        raise RegrowValueError(
            "`compile` keeps what it has seen of the network, and ghosts are taken out of it\n"
            "Give `compile=false`, or leave the ghosts out."
        )
    if recipe.never_dense and "gradinit" in names:
        raise RegrowValueError(
            "`never_dense` is true, but the trick gradinit needs the dense network\nLeave one of them out."
        )

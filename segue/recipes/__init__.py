"""Methods by the name that a user types."""

from __future__ import annotations

from segue.errors import UserError
from segue.recipes.awac import AWACRecipe
from segue.recipes.base import Recipe
from segue.recipes.bc import BCRecipe
from segue.recipes.from_scratch import SACRecipe, TD3Recipe
from segue.recipes.iql import IQLRecipe
from segue.recipes.rebrac import ReBRACRecipe
from segue.recipes.spot import SPOTRecipe
from segue.recipes.td3_bc import SSARRecipe, TD3BCRecipe
from segue.settings import with_changes

METHODS: dict[str, type[Recipe]] = {
    "td3_bc": TD3BCRecipe,
    "td3_bc_ssar": SSARRecipe,
    "iql": IQLRecipe,
    "awac": AWACRecipe,
    "bc": BCRecipe,
    "spot": SPOTRecipe,
    "rebrac": ReBRACRecipe,
    "sac": SACRecipe,
    "td3": TD3Recipe,
}


def recipe_type(method: str) -> type[Recipe]:
    """The settings class of a method. Raises UserError for an unknown name, with the nearest known ones."""
    if method not in METHODS:
        from difflib import get_close_matches

        near = get_close_matches(method, METHODS, n=3) or list(METHODS)
        raise UserError(f"method '{method}' is unknown; did you mean {', '.join(near)}?")
    return METHODS[method]


def preset_recipe(method: str, preset: str | None) -> Recipe:
    """The settings of a method, with those of a preset. Raises UserError for unknown names, with the nearest ones."""
    kind = recipe_type(method)
    if preset is None:
        return kind()
    if not kind.presets:
        raise UserError(f"{method} has no presets: it has the same settings on every dataset")
    if preset not in kind.presets:
        from difflib import get_close_matches

        near = get_close_matches(preset, kind.presets, n=3) or list(kind.presets)
        raise UserError(f"preset '{preset}' is unknown to {method}; did you mean {', '.join(near)}?")
    recipe: Recipe = with_changes(kind(), dict(kind.presets[preset]))
    return recipe

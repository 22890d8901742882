"""Methods by the name that a user types."""

from __future__ import annotations

from typing import Any

from segue.errors import UserError
from segue.recipes.aca import ACARecipe
from segue.recipes.awac import AWACRecipe
from segue.recipes.baq import BAQCQLRecipe, BAQIQLRecipe
from segue.recipes.base import Recipe
from segue.recipes.bc import BCRecipe
from segue.recipes.cql import CalQLRecipe, CQLRecipe
from segue.recipes.famo2o import FamO2OCQLRecipe, FamO2OIQLRecipe
from segue.recipes.from_scratch import SACRecipe, TD3Recipe
from segue.recipes.iql import IQLRecipe
from segue.recipes.ocr_cft import O2PPORecipe, O2SACRecipe, O2TD3Recipe
from segue.recipes.odt import ODTRecipe
from segue.recipes.off2on import Off2OnRecipe
from segue.recipes.pex import PEXRecipe
from segue.recipes.ppo import PPORecipe
from segue.recipes.proto import ProtoSACRecipe, ProtoTD3Recipe
from segue.recipes.rebrac import ReBRACRecipe
from segue.recipes.so2 import SO2Recipe
from segue.recipes.spot import SPOTRecipe
from segue.recipes.ssar import SSARCQLRecipe, SSARRecipe
from segue.recipes.suf import SUFRecipe
from segue.recipes.td3_bc import TD3BCRecipe
from segue.recipes.uni_o4 import UniO4Recipe
from segue.recipes.warm_starts import RLPDRecipe, WSRLRecipe
from segue.settings import with_changes

METHODS: dict[str, type[Recipe]] = {
    "bc": BCRecipe,
    "td3_bc": TD3BCRecipe,
    "td3_bc_ssar": SSARRecipe,
    "rebrac": ReBRACRecipe,
    "spot": SPOTRecipe,
    "iql": IQLRecipe,
    "awac": AWACRecipe,
    "cql": CQLRecipe,
    "cql_ssar": SSARCQLRecipe,
    "cal_ql": CalQLRecipe,
    "baq_cql": BAQCQLRecipe,
    "baq_iql": BAQIQLRecipe,
    "famo2o_iql": FamO2OIQLRecipe,
    "famo2o_cql": FamO2OCQLRecipe,
    "o2sac": O2SACRecipe,
    "o2td3": O2TD3Recipe,
    "o2ppo": O2PPORecipe,
    "uni_o4": UniO4Recipe,
    "so2": SO2Recipe,
    "off2on": Off2OnRecipe,
    "pex": PEXRecipe,
    "odt": ODTRecipe,
    "aca": ACARecipe,
    "proto_sac": ProtoSACRecipe,
    "proto_td3": ProtoTD3Recipe,
    "rlpd": RLPDRecipe,
    "wsrl": WSRLRecipe,
    "suf": SUFRecipe,
    "sac": SACRecipe,
    "td3": TD3Recipe,
    "ppo": PPORecipe,
}


def recipe_type(method: str) -> type[Recipe]:
    """The settings class of a method. Raises UserError for an unknown name, with the nearest known ones."""
    if method not in METHODS:
        from difflib import get_close_matches

        near = get_close_matches(method, METHODS, n=3) or list(METHODS)
        raise UserError(f"method '{method}' is unknown; did you mean {', '.join(near)}?")
    return METHODS[method]


def preset_recipe(method: str, preset: str | None) -> Recipe:
    """The settings of a method, with those of a preset, or of several joined by commas, the later ones going before.

    Raises UserError for unknown names, with the nearest ones.
    """
    kind = recipe_type(method)
    if preset is None:
        return kind()
    if not kind.presets:
        raise UserError(f"{method} has no presets: it has the same settings on every dataset")
    settings: dict[str, Any] = {}
    for name in preset.split(","):
        if name not in kind.presets:
            from difflib import get_close_matches

            near = get_close_matches(name, kind.presets, n=3) or list(kind.presets)
            raise UserError(f"preset '{name}' is unknown to {method}; did you mean {', '.join(near)}?")
        settings |= kind.presets[name]
    recipe: Recipe = with_changes(kind(), settings)
    return recipe

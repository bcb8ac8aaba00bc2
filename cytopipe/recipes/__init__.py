"""Recipes: how a paper is run, end to end, as one TOML file of what differs from the defaults (DESIGN 8)."""

from cytopipe.recipes.load import Resolved, list_recipes, load_recipe, recipe_hash
from cytopipe.recipes.schema import (
    EvaluateSection,
    ExpectedRow,
    InferSection,
    Recipe,
    TileSection,
)

__all__ = [
    "EvaluateSection",
    "ExpectedRow",
    "InferSection",
    "Recipe",
    "Resolved",
    "TileSection",
    "list_recipes",
    "load_recipe",
    "recipe_hash",
]

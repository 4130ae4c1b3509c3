"""YAML to a frozen, checked Recipe."""

from riftcli.recipe.data_sources import DataSection as DataSection
from riftcli.recipe.reader import OLDER as OLDER
from riftcli.recipe.reader import dump as dump
from riftcli.recipe.reader import find as find
from riftcli.recipe.reader import load as load
from riftcli.recipe.reader import parse as parse
from riftcli.recipe.reader import read as read
from riftcli.recipe.reader import shipped_folder as shipped_folder
from riftcli.recipe.reader import shipped_names as shipped_names
from riftcli.recipe.reader import source as source
from riftcli.recipe.reader import stored as stored
from riftcli.recipe.recipe import Recipe as Recipe
from riftcli.recipe.resolved import flatten as flatten

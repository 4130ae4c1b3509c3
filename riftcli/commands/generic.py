"""A command for every evaluator of the catalog that has none of its own: its fields are the options."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riftcli.commands import common

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable


SHARED = ("run", "model", "data", "overrides", "device", "out", "as_json")  # options that every such command has


def evaluator_command(name: str) -> Callable[..., None]:
    """`rift NAME [--run ..] [--model ..] [--data ..] [--FIELD ..] [--set ..] [--device ..] [--out ..] [--json]`."""
    from riftcli import catalog

    cls: Any = catalog.component("evaluator", name)
    hints = typing.get_type_hints(cls)
    said = [field for field in dataclasses.fields(cls) if field.name not in SHARED]
    fields = [(field, kind) for field in said if (kind := _option_type(hints[field.name])) is not None]

    def command(**given: Any) -> None:
        own = {field.name: tuple(v) if isinstance(v := given[field.name], list) else v for field, _ in fields}
        evaluator = cls(**own)
        common.check_out(given["out"])
        candidates = common.open_candidates(given["run"], given["model"], given["overrides"], own_data=not given["data"])
        sets = common.open_sets(given["data"], candidates, given["overrides"])
        recipe = candidates[0].recipe
        common.measure(evaluator, print_rows, candidates, sets, recipe, given["device"], given["out"], given["as_json"])

    def option(option_name: str, kind: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(option_name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    parameters = [option("run", common.Runs, []), option("model", common.Models, []), option("data", common.DataSets, [])]
    for field, kind in fields:
        default = field.default_factory() if callable(field.default_factory) else field.default
        default = inspect.Parameter.empty if default is dataclasses.MISSING else default
        default = list(default) if isinstance(default, tuple) else default
        parameters.append(option(field.name, Annotated[kind, typer.Option(help=f"{field.name} of the evaluator.")], default))
    parameters += [option("overrides", common.Overrides, []), option("device", common.Device, "auto")]
    parameters += [option("out", common.Out, None), option("as_json", common.AsJson, False)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what Typer reads
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = name, inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
    return command


def _option_type(hint: Any) -> Any:
    """The type of an option for a field's; None for what no command line can say."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool):
        return hint
    if origin is typing.Literal:
        return str
    if origin is tuple and inner[0] in (int, float, str):
        return list[inner[0]]  # type: ignore[valid-type]
    if origin in (typing.Union, types.UnionType) and len(inner) == 2 and type(None) in inner:
        kind = _option_type(next(i for i in inner if i is not type(None)))
        return kind if kind is None else typing.Optional[kind]  # noqa: UP045 - typer reads it at run time
    return None


def print_rows(table: ResultTable) -> None:
    """Every row with all its plain values."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import format_number

    columns = list(dict.fromkeys(key for row in table.rows for key in row))
    lines = [[format_number(row[key]) if row.get(key) is not None else "" for key in columns] for row in table.rows]
    print_grid(table.command, columns, lines)

"""A recipe: YAML and --set overrides in, a frozen and fully checked Recipe out. Reports every error at once; no torch here."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from riftcli import catalog, strict_yaml
from riftcli.errors import UsageError, nearest
from riftcli.protocols import SplitSpec

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Section(BaseModel):
    """A part of a recipe with fixed keys."""

    model_config = _STRICT


class ModelSection(Section):
    """The backbone."""

    name: str = Field(description="any timm name; local-dir:PATH, hf-hub:NAME and asset:NAME (shipped with riftcli) too")
    pretrained: bool = Field(True, description="false is training from scratch")
    weights: str | None = Field(None, description="a .safetensors file or a folder with one, for offline machines")
    image_size: int | None = Field(None, gt=0, description="pixels, height = width; null takes the model's own")
    feature: Literal["pooled", "cls", "avg"] = Field(
        "pooled", description="the (N, D) vector before the head: the model's own, the class token, or the patch mean"
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share of the resized image that the centre crop keeps; null takes the model's own"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate while training")
    args: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="further arguments of timm.create_model, e.g. {depth: 6}"
    )


class SplitSection(Section):
    """A split with a limit, or a validation split held out of another."""

    from_: str = Field("train", alias="from", description="a split of the data source")
    limit: int | None = Field(None, gt=0, description="keep so many samples, classes in proportion")
    fraction: float | None = Field(None, gt=0, lt=1, description="hold this share out (validation only), stratified")
    group: str | None = Field(None, description="column that must not be split, e.g. patient")
    seed: int = Field(0, ge=0)


class AugmentSection(Section):
    """Training augmentation. The defaults are off."""

    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    crop_min_area: float = Field(1.0, gt=0, le=1, description="random resized crop down to this share of the area; 1 is off")
    color_jitter: float = Field(0.0, ge=0, description="brightness, contrast and saturation jitter; 0 is off")

    @property
    def off(self) -> bool:
        """True when a training image is the same in every epoch."""
        return self.flip == 0 and self.crop_min_area == 1 and self.color_jitter == 0


class OptimSection(Section):
    """The optimizer, by timm's factory."""

    name: str = Field("adamw", description="any optimizer of timm.optim")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1, description="learning rate decay per block from the head down")
    betas: list[float] | None = Field(None, min_length=2, max_length=2)
    momentum: float | None = Field(None, ge=0, lt=1)
    clip_grad: float | None = Field(1.0, gt=0, description="L2 norm that the network's gradient is clipped to")


class ScheduleSection(Section):
    """Learning rate over the run, per step."""

    name: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after the warm-up, down to 0")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps that the rate rises linearly for")


class TrainSection(Section):
    """The loop."""

    epochs: int = Field(50, gt=0)
    batch_size: int = Field(128, gt=1, description="global: over all ranks and accumulated micro-batches")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per rank and forward; null: no accumulation")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on GPUs that have it")
    head_init: Literal["linear_probe", "zeros", "normal"] = Field(
        "linear_probe", description="linear_probe: fit the head on the pretrained features first"
    )
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=0, description="data workers per rank")
    log_every_steps: int = Field(1, gt=0)
    save_every_steps: int | None = Field(None, gt=0, description="also save the state to resume from within an epoch")


class EvalSection(Section):
    """What is measured."""

    every_epochs: int = Field(1, gt=0)
    metrics: list[str] = Field(default_factory=lambda: ["acc", "cka"], min_length=1)
    best: str = Field("acc", description="metric on the validation split that picks the kept weights")
    patience: int | None = Field(None, gt=0, description="stop after so many evaluations without a better one")
    batch_size: int = Field(128, gt=0, description="per rank")
    knn_k: int = Field(20, gt=0, description="neighbours of the kNN on the retention sets")


@dataclass(frozen=True)
class Data:
    """A data source bound to its splits."""

    format: str
    source: Any  # protocols.Dataset
    train: SplitSpec
    val: SplitSpec | None
    test: SplitSpec

    @property
    def name(self) -> str:
        """Short name for folders and reports."""
        root = getattr(self.source, "root", None)
        return getattr(self.source, "name", None) or (Path(root).name if root else self.format)


@dataclass(frozen=True)
class Recipe:
    """Everything one run needs, checked."""

    name: str
    model: ModelSection
    data: Data
    objective: Any
    adapter: Any
    regularizer: Any
    augment: AugmentSection
    optim: OptimSection
    schedule: ScheduleSection
    train: TrainSection
    eval: EvalSection
    retention: tuple[Data, ...]
    resolved: dict[str, Any]  # every value, as plain data; writing and reading it gives the same recipe
    sources: dict[str, str]  # dotted key -> "default" | "recipe" | "--set"
    text: str  # the file as it was

    @property
    def needs_reference(self) -> bool:
        """True when the frozen pretrained model is needed for a metric."""
        metrics: list[Any] = [catalog.component("metric", name) for name in self.eval.metrics]
        return bool(self.retention) or any(metric.needs_reference for metric in metrics)

    def component_name(self, kind: str) -> str:
        """The catalog name of the objective, adapter or regularizer."""
        return self.resolved[kind]["name"]


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "augment": AugmentSection,
    "optim": OptimSection,
    "schedule": ScheduleSection,
    "train": TrainSection,
    "eval": EvalSection,
}
COMPONENTS = {"objective": "cross_entropy", "adapter": "full", "regularizer": "none"}  # kind -> default name
TOP_LEVEL = [
    "model",
    "data",
    "objective",
    "adapter",
    "regularizer",
    "augment",
    "optim",
    "schedule",
    "train",
    "eval",
    "retention",
]
_SPLIT_KEYS = ["format", "train", "val", "test"]


# ---------------------------------------------------------------------------------------------------------------------
# finding a recipe


def shipped_folder() -> Path:
    """The folder of shipped recipes, in a wheel and in a checkout alike."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_names() -> list[str]:
    """Names of the shipped recipes, without `.yaml`."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def find(name: str) -> Path:
    """A path if one exists, else a shipped recipe by name; raise UsageError with the nearest name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = name.removesuffix(".yaml")
    shipped = shipped_folder() / f"{stem}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    raise UsageError(
        f"recipe {name}: no such file and no shipped recipe of that name{nearest(stem, shipped_names())}; "
        "`rift recipes ls` lists the shipped ones"
    )


def load(name: str, overrides: list[str] | None = None) -> Recipe:
    """Find, read and check a recipe; raise UsageError with every error, each with its line."""
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path.name}: not a UTF-8 text file (byte {error.start})") from error
    return parse(text, path.name, overrides or [])


def parse(text: str, filename: str, overrides: list[str]) -> Recipe:
    """Check recipe text; `filename` is for messages and the run's name."""
    try:
        document = strict_yaml.parse(text)
    except strict_yaml.YamlError as error:
        raise UsageError(f"recipe {filename}:{error.line}: {error.what}") from error
    if not isinstance(document.data, dict):
        raise UsageError(f"recipe {filename}:1: a recipe is a mapping with the keys {', '.join(TOP_LEVEL)}")
    checker = _Checker(filename, document)
    for override in overrides:
        checker.apply(override)
    return checker.recipe(text)


# ---------------------------------------------------------------------------------------------------------------------
# checking it


class _Checker:
    """Collects errors instead of stopping at the first one."""

    def __init__(self, filename: str, document: strict_yaml.Document) -> None:
        self.filename, self.raw, self.lines = filename, document.data, document.lines
        self.from_set: dict[tuple[str | int, ...], str] = {}
        self.errors: list[str] = []

    def apply(self, override: str) -> None:
        """One `a.b=value`; the value is read as YAML."""
        key, equals, value = override.partition("=")
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if not equals or not key:
            raise UsageError(f"--set {override}: expected KEY=VALUE, e.g. --set optim.lr=1e-5")
        try:
            parsed = strict_yaml.parse(value).data
        except strict_yaml.YamlError as error:
            raise UsageError(f"--set {override}: {error.what}") from error
        here: Any = self.raw
        for depth, part in enumerate(path[:-1]):
            if isinstance(here, list) and isinstance(part, int) and part < len(here):
                here = here[part]
                continue
            if not isinstance(here, dict):
                raise UsageError(f"--set {override}: {'.'.join(map(str, path[:depth]))} has no keys below it")
            if not isinstance(here.get(part), dict | list):
                here[part] = {}
            here = here[part]
        if isinstance(here, list) and isinstance(path[-1], int) and path[-1] < len(here):
            here[path[-1]] = parsed
        elif isinstance(here, dict):
            self._forget_old_component(here, path, parsed)
            here[path[-1]] = parsed
        else:
            raise UsageError(f"--set {override}: there is no such entry in the list")
        self.from_set[path] = override

    def _forget_old_component(self, here: dict, path: tuple[str | int, ...], new_name: Any) -> None:
        """Another regularizer by --set must not stumble over the file's keys for the old one."""
        kind, is_name = (path[0], path[1:] == ("name",)) if path[0] in COMPONENTS else ("data", path[-1] == "format")
        if not is_name or here.get(path[-1]) == new_name or new_name not in catalog.CATALOG[str(kind)]:
            return
        keep = {f.name for f in dataclasses.fields(catalog.component(str(kind), new_name))}
        keep |= {"name"} if kind != "data" else set(_SPLIT_KEYS)
        for old in [key for key in here if key not in keep and (*path[:-1], key) not in self.from_set]:
            del here[old]

    # -- messages

    def fail(self, path: tuple[str | int, ...], what: str, allowed: list[str] | None = None) -> None:
        dotted = ".".join(map(str, path))
        if path in self.from_set:
            where = f"--set {self.from_set[path]}: "
        else:
            known = path
            while known and known not in self.lines:
                known = known[:-1]
            where = f"recipe {self.filename}:{self.lines.get(known, 1)}: "
        extra = f"\n  allowed here: {', '.join(allowed)}" if allowed else ""
        self.errors.append(f"{where}{dotted}: {what}{extra}")

    def section(self, prefix: tuple[str | int, ...], model: type[BaseModel], raw: Any) -> Any:
        """Validate a mapping against a pydantic model; None after errors."""
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected keys below it, got {_show(raw)}", _keys(model))
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self._translate(prefix, model, raw, error)
            return None

    def _translate(self, prefix: tuple[str | int, ...], model: type[BaseModel], raw: Any, error: ValidationError) -> None:
        seen: dict[tuple[str | int, ...], tuple[list[str], Any]] = {}
        for problem in error.errors():
            # pydantic appends the union member it tried ("list[float]"): keep the part that exists in the recipe
            loc: list[str | int] = []
            value: Any = raw
            for part in problem["loc"]:
                inside = isinstance(value, dict) and part in value or isinstance(value, list) and isinstance(part, int)
                if not inside:
                    loc = loc or [part]
                    break
                value = value[part]
                loc.append(part)
            path = (*prefix, *loc)
            if problem["type"] == "extra_forbidden":
                self.fail(path, f"unknown key{nearest(str(loc[-1]), _keys(model))}", _keys(model))
            elif problem["type"] == "missing":
                self.fail(path, "missing; it has no default")
            else:
                seen.setdefault(path, ([], value))[0].append(_wanted(problem))
        for path, (wanted, value) in seen.items():
            self.fail(path, f"expected {' or '.join(dict.fromkeys(wanted))}, got {_show(value)}")

    def named_component(self, prefix: tuple[str | int, ...], kind: str, raw: Any, key: str = "name") -> Any:
        """A mapping whose `name` picks the class and whose other keys are its fields."""
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected keys below it, e.g. {{{key}: {catalog.names(kind)[0]}}}, got {_show(raw)}")
            return None
        name = raw.get(key)
        if name is None:
            self.fail((*prefix, key), "missing; it has no default", catalog.names(kind))
            return None
        if name not in catalog.CATALOG[kind]:
            close = nearest(str(name), catalog.names(kind))
            self.fail((*prefix, key), f"unknown {kind} {_show(name)}{close}", catalog.names(kind))
            return None
        cls = catalog.component(kind, name)
        values = self.section(prefix, fields_model(cls), {k: v for k, v in raw.items() if k != key})
        if values is None:
            return None
        try:
            return cls(**{f.name: getattr(values, f.name) for f in dataclasses.fields(cls)})
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            self.fail((*prefix, field), f"{what}, got {_show(getattr(values, field, None))}")
            return None

    def data(self, prefix: tuple[str | int, ...], raw: Any) -> Data | None:
        """The data source and its splits."""
        if not isinstance(raw, dict):
            self.fail(prefix, "missing: a recipe needs a data source", catalog.names("data"))
            return None
        source_raw = {k: v for k, v in raw.items() if k not in ("train", "val", "test")}
        source = self.named_component(prefix, "data", source_raw, key="format")
        train = self.split((*prefix, "train"), raw.get("train", "train"))
        val = self.split((*prefix, "val"), raw.get("val"))
        test = self.split((*prefix, "test"), raw.get("test", "test"))
        for key, spec in (("train", train), ("test", test)):
            if spec and spec.fraction is not None:
                self.fail((*prefix, key, "fraction"), "only data.val can be a fraction of another split")
        if val and val.fraction is not None and train and val.name != train.name:
            self.fail((*prefix, "val", "from"), f"must be the training split '{train.name}', got '{val.name}'")
        if source is None or train is None or test is None:
            return None
        return Data(raw["format"], source, train, val, test)

    def split(self, prefix: tuple[str | int, ...], raw: Any) -> SplitSpec | None:
        if raw is None or isinstance(raw, str):
            return SplitSpec(raw) if raw else None
        values = self.section(prefix, SplitSection, raw)
        return values and SplitSpec(values.from_, values.limit, values.fraction, values.group, values.seed)

    # -- the whole

    def recipe(self, text: str) -> Recipe:
        """Check everything, then either raise all errors or return the Recipe."""
        for key in self.raw:
            if key not in TOP_LEVEL:
                self.fail((key,), f"unknown key{nearest(str(key), TOP_LEVEL)}", TOP_LEVEL)
        parts: dict[str, Any] = {k: self.section((k,), m, self.raw.get(k)) for k, m in SECTIONS.items()}
        for kind, default in COMPONENTS.items():
            raw = self.raw.get(kind)
            parts[kind] = self.named_component((kind,), kind, {"name": default} if raw is None else raw)
        parts["data"] = self.data(("data",), self.raw.get("data"))
        retention = self.raw.get("retention") or []
        if not isinstance(retention, list):
            self.fail(("retention",), f"expected a list of data sources, got {_show(retention)}")
            retention = []
        parts["retention"] = tuple(self.data(("retention", i), raw) for i, raw in enumerate(retention))
        self._check_together(parts)
        if self.errors:
            raise UsageError("\n".join(self.errors))
        resolved = _resolved(parts, self.raw)
        return Recipe(
            name=Path(self.filename).stem,
            resolved=resolved,
            sources={path: self._source(path) for path in flatten(resolved)},
            text=text,
            **parts,
        )

    def _source(self, dotted: str) -> str:
        path = tuple(int(p) if p.isdigit() else p for p in dotted.split("."))
        for end in range(len(path), 0, -1):
            if path[:end] in self.from_set:
                return "--set"
        return "recipe" if path in self.lines else "default"

    def _check_together(self, parts: dict[str, Any]) -> None:
        evaluation, train, model = parts["eval"], parts["train"], parts["model"]
        if evaluation:
            for i, metric in enumerate(evaluation.metrics):
                if metric not in catalog.CATALOG["metric"]:
                    close = nearest(metric, catalog.names("metric"))
                    self.fail(("eval", "metrics", i), f"unknown metric '{metric}'{close}", catalog.names("metric"))
            if evaluation.best not in evaluation.metrics:
                self.fail(("eval", "best"), f"'{evaluation.best}' must be one of eval.metrics", evaluation.metrics)
        if train and train.micro_batch_size and train.batch_size % train.micro_batch_size:
            self.fail(
                ("train", "micro_batch_size"),
                f"{train.micro_batch_size} does not divide train.batch_size {train.batch_size}",
            )
        regularizer = (self.raw.get("regularizer") or {}).get("name", "none")
        if model and not model.pretrained and regularizer != "none":
            self.fail(
                ("regularizer", "name"),
                f"'{regularizer}' keeps a pretrained representation and model.pretrained is false (from scratch); "
                "use regularizer.name none",
            )


# ---------------------------------------------------------------------------------------------------------------------
# small helpers


def fields_model(cls: type) -> type[BaseModel]:
    """A strict pydantic model with the fields of a component's dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            fields[field.name] = (hints[field.name], field.default)
        elif field.default_factory is not dataclasses.MISSING:
            fields[field.name] = (hints[field.name], Field(default_factory=field.default_factory))
        else:
            fields[field.name] = (hints[field.name], ...)
    return create_model(cls.__name__, __config__=_STRICT, __doc__=cls.__doc__, **fields)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


_WORDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "keys below it",
    "finite_number": "a finite number",
    "none_required": "null",
}


def _wanted(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "literal_error":
        return str(context["expected"])
    limits = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    if kind in limits:
        bound = context[{"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}[kind]]
        return f"a number {limits[kind]} {bound:g}"
    return problem["msg"][0].lower() + problem["msg"][1:]


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()} (true/false)"
    if isinstance(value, str):
        return f"'{value}' (text)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else str(value)


def _resolved_data(data: Data) -> dict[str, Any]:
    def spec(split: SplitSpec | None) -> Any:
        if split is None:
            return None
        if split == SplitSpec(split.name):
            return split.name
        named = {k: v for k, v in dataclasses.asdict(split).items() if v is not None and k != "name"}
        return {"from": split.name, **named}

    fields = dataclasses.asdict(data.source)
    return {"format": data.format, **fields, "train": spec(data.train), "val": spec(data.val), "test": spec(data.test)}


def _resolved(parts: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in TOP_LEVEL:
        if key in SECTIONS:
            out[key] = parts[key].model_dump(by_alias=True)
        elif key in COMPONENTS:
            name = (raw.get(key) or {}).get("name", COMPONENTS[key])
            out[key] = {"name": name, **dataclasses.asdict(parts[key])}
        elif key == "data":
            out[key] = _resolved_data(parts[key])
        else:
            out[key] = [_resolved_data(data) for data in parts[key]]
    return out


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested data as {dotted key: value}; empty containers are values."""
    if isinstance(tree, dict) and tree:
        items = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = list(enumerate(tree))
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def dump(resolved: dict[str, Any]) -> str:
    """Resolved values as YAML that this module reads back."""
    import yaml

    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120)

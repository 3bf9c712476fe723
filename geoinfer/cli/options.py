"""The settings of a run, from flags, environment and file to one checked value.

Flags win over `GEOINFER_*` variables, these over the file given with `--config`. A key that is not known is an error that
suggests the one that was meant. What the settings mean is the pipeline's affair.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from geoinfer.errors import ConfigError

if TYPE_CHECKING:
    from geoinfer.imagery.options import SourceOptions

PREFIX = "GEOINFER_"
"""Environment variables are this and the flag's name in capitals: `GEOINFER_BATCH_SIZE`."""


def _split(value: object) -> object:
    """`"1,2,3"` -> `["1", "2", "3"]`: lists may be written with commas; YAML lists stay as they are."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


def _whole(value: object) -> object:
    """`"1e9"` -> 10^9; what is no whole number stays, and is refused."""
    try:
        number = float(value) if isinstance(value, str) and not value.strip().isdigit() else None
    except ValueError:
        return value
    return value if number is None or not number.is_integer() else int(number)


def _share(value: object) -> object:
    """`"1%"` -> 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


def _as_time(value: object) -> object:
    """YAML reads `2024-01-01` as a date."""
    return value.isoformat() if isinstance(value, date) else value


Numbers4 = Annotated[tuple[float, float, float, float], BeforeValidator(_split)]
Numbers2 = Annotated[tuple[float, float], BeforeValidator(_split)]
Mask = str | dict[str, Any]
"""A mask layer as on the command line, or as its settings in YAML; `masks.layer` knows what they may be."""


Many = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class RunOptions(BaseModel):
    """Settings of `run` and `plan`, checked; the description of each is what an error message tells the user."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)

    source: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1, description="one source or more")]
    output: str | None = Field(None, description="the run directory")
    model: str = Field("buildings", description="a model's name or its directory")
    bbox: Numbers4 | None = Field(None, description="four numbers W,S,E,N")
    bbox_crs: str = Field("EPSG:4326", description="a coordinate system such as EPSG:4326")
    region: str | None = Field(None, description="a file of polygons")
    place: Many = Field((), description="names of places in the file of --region")
    crs: str | None = Field(None, description="a coordinate system such as EPSG:4326")
    mask: Annotated[tuple[Mask, ...], BeforeValidator(_one_or_many)] = Field(
        (), description="FILE:key=value,... or, in YAML, a list of {file: ..., name: ..., action: ...}"
    )
    calibrated: str | None = Field(None, description="a region that the model's card has a calibration for")
    threshold: float | None = Field(None, gt=0, le=1, description="a probability above 0, at most 1")
    min_area: float | None = Field(None, ge=0, description="square metres, 0 or more")
    bands: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)] | None = Field(
        None, description="band numbers from 1, as 3,2,1"
    )
    stretch: Numbers2 | None = Field(None, description="two numbers LO,HI")
    scaling: Literal["percentile", "declared"] = Field("percentile", description="percentile or declared")
    assume_crs: str | None = Field(None, description="a coordinate system such as EPSG:32630")
    prefer: Literal["given", "newest", "finest", "least-cloud"] = Field(
        "given", description="given, newest, finest or least-cloud"
    )
    no_overviews: bool = Field(False, description="true or false")
    domain: Literal["warn", "mark", "refuse", "ignore"] = Field("warn", description="warn, mark, refuse or ignore")
    strict_domain: bool = Field(False, description="true or false")
    collection: Many = Field((), description="identifiers of STAC collections")
    datetime: Annotated[str | None, BeforeValidator(_as_time)] = Field(
        None, description="a time or a range A/B, as 2024-01-01/2024-12-31"
    )
    query: Many = Field((), description="property filters, as eo:cloud_cover<10")
    asset: Many = Field((), description="keys of the items' assets")
    max_items: int | None = Field(None, ge=1, description="a number of items, 1 or more")
    zoom: int | None = Field(None, ge=0, le=30, description="a zoom level, 0 to 30")
    tile_rate: float | None = Field(None, gt=0, description="requests a second, above 0")
    tile_concurrency: int = Field(4, ge=1, le=64, description="requests at a time, 1 to 64")
    tile_cache: str | None = Field(None, description="a folder")
    placeholder: Many = Field((), description="image files, or sha256 in hexadecimal")
    wmts_layer: str | None = Field(None, description="the identifier of a layer")
    allow_host: Many = Field((), description="hosts, as 10.0.0.7 or tiles.local:8080")
    allow_vrt: bool = Field(False, description="true or false")
    aws_no_sign_requests: bool = Field(False, description="true or false")
    aws_requester_pays: bool = Field(False, description="true or false")
    sign: str | None = Field(None, description="planetary-computer, or module:function")
    changed: Literal["fail", "warn"] = Field("fail", description="fail or warn")
    tile: int | None = Field(None, ge=1, le=256, description="cores on a side, 1 to 256")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="a number of chips, or auto")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto, fp32, bf16 or fp16")
    workers: int | None = Field(None, ge=0, description="a number of processes; 0 works in this one")
    threads: int | None = Field(None, ge=1, le=1024, description="a number of threads, 1 to 1024")
    trace: str | None = Field(None, description="a file to write")
    scheduler: str | None = Field(None, description="a Dask scheduler's address, tcp://HOST:PORT")
    in_flight: int | None = Field(None, ge=1, description="a number of tiles, 1 or more")
    on_error: Literal["fail", "skip"] | None = Field(None, description="fail or skip")
    max_failed: Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)] | None = Field(
        None, description="a share of the tiles, as 1% or 0.01"
    )
    retries: int | None = Field(None, ge=0, le=100, description="0 to 100")
    max_pixels: Annotated[int, BeforeValidator(_whole), Field(ge=1)] | None = Field(
        None, description="a whole number of pixels, 1 or more, also as 1e9"
    )
    price_gpu_hour: float | None = Field(None, ge=0, description="an amount of money, 0 or more")
    mask_alarm: Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)] | None = Field(
        None, description="a share of the footprints, as 20% or 0.2"
    )
    strict_masks: bool = Field(False, description="true or false")
    update: bool = Field(False, description="true or false")
    dry_run: bool = Field(False, description="true or false")
    overwrite: bool = Field(False, description="true or false")

    def source_options(self) -> SourceOptions:
        """The settings that say which pixels come from where."""
        from geoinfer.imagery.options import Search, Service, SourceOptions
        from geoinfer.remote.access import Access

        return SourceOptions(
            bands=self.bands,
            stretch=self.stretch,
            scaling=self.scaling,
            overviews=not self.no_overviews,
            assume_crs=self.assume_crs,
            prefer=self.prefer,
            allow_vrt=self.allow_vrt,
            on_error=self.on_error or "fail",
            changed=self.changed,
            access=Access(
                hosts=self.allow_host,
                sign_requests=not self.aws_no_sign_requests,
                requester_pays=self.aws_requester_pays,
                signer=self.sign,
            ),
            search=Search(self.collection, self.datetime, self.query, self.asset, self.max_items),
            service=Service(
                zoom=self.zoom,
                rate=self.tile_rate,
                concurrency=self.tile_concurrency,
                cache=self.tile_cache,
                placeholders=self.placeholder,
                layer=self.wmts_layer,
            ),
        )


_SEVERAL = {"mask", "place", "collection", "query", "asset", "placeholder", "allow_host"}
"""Settings that may be given several times."""


def resolve(flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None) -> RunOptions:
    """One checked value from all places.

    Args:
        flags: Name -> value as typed; None where the flag was not given.
        environ: The environment.
        config: YAML file with the same names, `-` or `_`.

    Raises:
        ConfigError: A key is unknown, or a value cannot be what it should be; names the place it came from.
    """
    values: dict[str, object] = {}
    places: dict[str, str] = {}
    for key, value in _read_config(config).items():
        values[key], places[key] = value, f"{config}: {key}"
    for name in RunOptions.model_fields:
        variable = PREFIX + name.upper()
        if environ.get(variable):
            values[name], places[name] = _from_environment(name, environ[variable]), variable
        flag = flags.get(name)
        if flag is not None and flag not in ((), []):  # no argument given
            values[name], places[name] = flag, f"--{name.replace('_', '-')}"
    if "source" not in values:
        raise ConfigError("no SOURCE given: name one or more, as in `geoinfer run scene.tif -o RUN`")
    try:
        return RunOptions.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, places)) from error


def _from_environment(name: str, text: str) -> object:
    """A variable's value; what may stand several times has `;` between, since `,` and `:` are part of many."""
    return [part.strip() for part in text.split(";") if part.strip()] if name in _SEVERAL else text


def _read_config(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        read: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read: {_cause(error)}; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: is not plain YAML: {_cause(error)}") from error
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise ConfigError(f"--config {path}: holds a {type(read).__name__}; write one `name: value` a line")
    settings: dict[str, object] = {}
    for key, value in read.items():
        name = str(key).replace("-", "_")
        name = {"sources": "source", "masks": "mask"}.get(name, name)
        if name not in RunOptions.model_fields:
            raise ConfigError(f"--config {path}: unknown key '{key}'{suggest(name, RunOptions.model_fields)}")
        if name in settings:
            raise ConfigError(f"--config {path}: '{key}' stands there twice; keep one")
        settings[name] = value
    return settings


def suggest(name: str, known: Mapping[str, object]) -> str:
    """`"; did you mean 'threshold'?"`, or the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _explain(error: ValidationError, values: Mapping[str, object], places: Mapping[str, str]) -> str:
    """The first thing that is wrong: place, value, and what would do."""
    name = str(error.errors()[0]["loc"][0])
    value = values.get(name)
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return f"{places.get(name, name)} {shown!s}: expected {RunOptions.model_fields[name].description}"


def _cause(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())

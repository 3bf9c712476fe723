"""`geoinfer calibrate`: choose a region's threshold, least area and temperature on labelled places of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.printing import emit, emit_json, emit_pairs, emit_table, say
from geoinfer.errors import ConfigError

if TYPE_CHECKING:
    from geoinfer.evaluation.places import Place
    from geoinfer.model.spec import Calibration

SHOWN = ("threshold", "min_area_m2", "tp", "fp", "fn", "precision", "recall", "f1")
BEST = 10
"""Candidates that are printed; `--json` has all."""


def calibrate(
    image: Annotated[Path | None, typer.Argument(help="GeoTIFF of a place of the region.")] = None,
    labels: Annotated[Path | None, typer.Argument(help="Its true footprints.")] = None,
    aoi: Annotated[Path | None, typer.Option("--aoi", help="Polygons inside which the truth is complete.")] = None,
    places: Annotated[
        Path | None,
        typer.Option(
            "--places", help="Several places: a CSV with image,labels and maybe aoi, region, split.", metavar="CSV"
        ),
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Name of the region in the card.", metavar="NAME")] = None,
    model: Annotated[str, typer.Option("--model", help="A model's name or its directory.")] = "buildings",
    objective: Annotated[
        str, typer.Option("--objective", help="f1, precision>=0.9 (then recall is maximised), or f1,precision>=0.8.")
    ] = "f1",
    thresholds: Annotated[
        str | None, typer.Option("--thresholds", help="To try; default 0.2 to 0.8.", metavar="T,...")
    ] = None,
    min_areas: Annotated[
        str | None,
        typer.Option("--min-areas", help="To try, m²; default none, half the card's, it, twice it.", metavar="A,..."),
    ] = None,
    iou: Annotated[float, typer.Option("--iou", help="Least intersection over union of a match.")] = 0.5,
    write: Annotated[bool, typer.Option("--write", help="Write the choice into the model's card.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Choose threshold and least area per region for an objective, and fit the temperature of the probabilities.

    Never on places kept for testing: a row, or a split.csv above the image, that says test is refused. Without --write
    nothing is changed.
    """
    from geoinfer.evaluation.calibrate import calibrate as choose
    from geoinfer.evaluation.calibrate import reliability_data
    from geoinfer.evaluation.objective import parse_objective
    from geoinfer.model.predictor import load_predictor
    from geoinfer.model.registry import find_model, write_calibration

    wanted = parse_objective(objective)  # before any work
    how: dict[str, Any] = {"iou": iou}
    for flag, name, text in (("--thresholds", "thresholds", thresholds), ("--min-areas", "min_areas", min_areas)):
        if text is not None:
            how[name] = _numbers(flag, text)
    by_region = _places(image, labels, aoi, places, region)
    bundle = find_model(model)
    predictor = load_predictor(model, device=device)
    told = []
    for name, found in by_region.items():
        chosen, tried = choose(name, found, predictor, wanted, **how)
        table = tried.table()
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        card = str(write_calibration(bundle, chosen)) if write else None
        told.append(
            {"region": name, **chosen.to_dict(), "card": card, "tried": rows, "reliability": reliability_data(chosen, tried)}
        )
        if not as_json:
            order = table.sort_values(wanted.maximise, ascending=False)[[*SHOWN]].head(BEST)
            emit_table(SHOWN, order.itertuples(index=False))
            emit("")
            emit_pairs(_summary(chosen))
            emit("")
            say(
                f"{name}: written to {card}" if card else f"{name}: nothing was written; write it into the card with --write"
            )
    if as_json:
        emit_json({"model": bundle.spec.name, "version": bundle.spec.version, "regions": told})


def _places(
    image: Path | None, labels: Path | None, aoi: Path | None, places: Path | None, region: str | None
) -> dict[str, list[Place]]:
    from geoinfer.evaluation.places import open_place, read_places

    if places is not None:
        if image is not None or labels is not None or aoi is not None:
            raise ConfigError("--places names the images, labels and areas: give it, or IMAGE LABELS and --aoi, not both")
        return read_places(places, region)
    if image is None or labels is None:
        raise ConfigError("no place: give IMAGE LABELS [--aoi FILE], or --places CSV with the columns image,labels,aoi")
    if not region:
        raise ConfigError("no region: name it with --region NAME; the choice stands under it in the card")
    return {region: [open_place(image, labels, aoi)]}


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: expected numbers with commas between them") from error


def _summary(chosen: Calibration) -> dict[str, object]:
    """What a person wants to know of a choice."""
    evidence = chosen.evidence
    figures: dict[str, object] = {
        "region": chosen.region,
        "objective": chosen.objective,
        "threshold": chosen.threshold,
        "min_area_m2": chosen.min_area_m2,
    }
    for name in ("before", "chosen", "held_out"):
        figures[name] = "unknown: too few blocks of ground" if evidence[name] is None else _line(evidence[name])
    figures["gain"] = _line(evidence["gain"])
    figures["temperature"] = "not fitted" if chosen.temperature is None else f"{chosen.temperature:.3f}"
    for name in ("ece", "brier"):
        figures[name] = _line(evidence[name])
    return figures | {"notes": "; ".join(evidence["notes"]) or "none"}


def _line(numbers: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'unknown' if value is None else format(value, '.4f')}" for name, value in numbers.items())

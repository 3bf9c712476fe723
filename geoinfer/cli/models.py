"""`geoinfer models`: what is there to infer with."""

from __future__ import annotations

from typing import Annotated

import typer

from geoinfer.cli.printing import emit, emit_json, emit_pairs, emit_table

app = typer.Typer(name="models", help="List, show and verify models.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Name = Annotated[str, typer.Argument(help="A model's name or its directory.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """The models that are found, with the ground sample distance each was made for."""
    from geoinfer.model.registry import list_models as known_models
    from geoinfer.model.registry import resolve_model

    specs = [resolve_model(name) for name in known_models()]
    if as_json:
        emit_json({"models": [spec.to_dict() for spec in specs]})
    else:
        emit_table(
            ("name", "version", "gsd", "chip", "threshold", "architecture"),
            ((s.name, s.version, f"{s.gsd:g} m", f"{s.chips.chip} px", s.threshold, s.architecture) for s in specs),
        )


@app.command("show")
def show(name: Name, as_json: AsJson = False) -> None:
    """Everything that a model's card says to the program."""
    from geoinfer.model.registry import find_model

    bundle = find_model(name)
    card, chosen = bundle.spec.to_dict(), bundle.calibrations
    if as_json:
        emit_json({**card, "calibrations": {region: one.to_dict() for region, one in chosen.items()}})
        return
    emit_pairs(card)
    for region, one in chosen.items():
        emit(f"in {region}: threshold {one.threshold:g}, least area {one.min_area_m2:g} m² (for {one.objective})")


@app.command("verify")
def verify(name: Name, as_json: AsJson = False) -> None:
    """Load a model, which checks its weights against their sha256."""
    from geoinfer.model.predictor import load_predictor

    spec = load_predictor(name, device="cpu", precision="fp32", batch_size=1).spec
    if as_json:
        emit_json({"model": spec.name, "version": spec.version, "sha256": spec.weights_sha256, "ok": True})
    else:
        emit(f"{spec.name} {spec.version}: weights agree with their sha256 {spec.weights_sha256}")

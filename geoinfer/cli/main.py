"""The program `geoinfer`: its verbs, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import geoinfer
from geoinfer.cli import (
    calibrate,
    compare,
    demo,
    doctor,
    evaluate,
    info,
    masks,
    models,
    results,
    run,
    search,
    snapshot,
    train,
)
from geoinfer.cli.argv import normalise
from geoinfer.cli.printing import emit, fail, say
from geoinfer.errors import GeoinferError

EPILOG = (
    "Exit status: 0 done, 1 internal, 2 usage or settings, 3 output, 4 input, 5 too many failed tiles or an alarm of a mask "
    "layer, 6 remote, 7 memory or disk, 8 refused for safety, 130 and 143 interrupted with the state saved."
)

app = typer.Typer(
    name="geoinfer",
    help="Satellite and aerial imagery in, building footprints out.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("plan")(run.plan)
app.command("info")(info.info)
app.command("search")(search.search)
app.command("snapshot")(snapshot.snapshot)
app.command("export")(results.export)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("calibrate")(calibrate.calibrate)
app.command("verify")(results.verify)
app.command("train")(train.train)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(masks.app, name="masks")
app.add_typer(models.app, name="models")


def _show_version(asked: bool) -> None:
    if asked:
        emit(f"geoinfer {geoinfer.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; stands anywhere on the line.")
    ] = False,
) -> None:
    """Satellite and aerial imagery in, building footprints out."""
    del version, debug  # the first acts by its callback, the second in `main`


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments without the program's name; default those of the process.
    """
    arguments = normalise(sys.argv[1:] if argv is None else argv)
    try:
        status = app(args=arguments, prog_name="geoinfer", standalone_mode=False, obj=arguments)
    except (KeyboardInterrupt, typer.Abort):
        say("geoinfer: interrupted")
        return 130
    except Exception as error:  # noqa: BLE001  # the end of the road: the user gets a line and a status, whatever it is
        return _report(error, debug="--debug" in arguments[:1])
    return status if isinstance(status, int) else 0


def _report(error: Exception, debug: bool) -> int:
    """Say what went wrong, in one line, and choose the exit status."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, GeoinferError):
        fail(error)
        return error.exit_code
    usage = getattr(error, "format_message", None)  # the option parser's own errors
    if usage is not None:
        fail(f"{usage()} (`geoinfer --help` lists what there is)")
        return 2
    hint = "" if debug else "; run again with --debug to see where"
    if isinstance(error, MemoryError):
        fail(f"out of memory: {error}; try a smaller --tile, --batch-size or fewer --workers{hint}")
        return 7
    fail(f"internal: {type(error).__name__}: {error}{hint}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

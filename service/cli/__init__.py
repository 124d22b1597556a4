"""The command `equipoise`. Training is reached by lazy imports, so that serving works without torch."""

import sys
from typing import NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

import service.cli.keys as keys
import service.cli.serving as serving
import service.cli.train as train
import service.cli.training as training
from models.calibration.errors import CalibrationError

app = typer.Typer(
    name="equipoise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Debiased class scores for image classifiers trained on long-tailed data.\n\n"
        "The way of a model: train (or import your own), fit its calibration, evaluate, export a bundle, serve it, "
        "score images. `equipoise demo` does all of it on a small data set.\n\n"
        "Exit codes: 0 done, 1 refused or failed (the message says why), 2 wrong usage."
    ),
)
app.command("train")(train.train)
app.command("recipes")(train.recipes)
app.command("fit")(training.fit)
app.command("evaluate")(training.evaluate)
app.command("report")(training.report)
app.command("export")(training.export)
app.command("import")(training.import_model)
app.command("serve")(serving.serve)
app.command("worker")(serving.worker)
app.command("score")(serving.score)
app.add_typer(keys.app, name="keys")
app.command("demo")(serving.demo)


def main() -> None:
    """Run the command line; an expected error is one message on stderr and exit code 1, never a traceback."""
    try:
        app(prog_name="equipoise")
    except CalibrationError as error:
        _refuse(str(error))
    except ValidationError as error:  # of the settings: everything else that is validated answers requests
        _refuse(
            "; ".join(f"EQUIPOISE_{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors())
        )
    except SettingsError as error:  # the one setting that holds JSON
        _refuse(f'EQUIPOISE_BUNDLE_URL_PREFIXES is a JSON list such as ["s3://bucket"]; {error.__cause__}.')


def _refuse(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print("error:", message, style="red", markup=False)
    sys.exit(1)

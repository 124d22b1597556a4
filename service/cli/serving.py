"""Commands that use a model: serve it, score images, and the demonstration of the whole way."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from models.calibration.errors import CalibrationError
from service.cli.terminal import console
from service.settings import Settings, environment_of


def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundle folders or .tar files to register; none: what the state folder holds.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="EQUIPOISE_HOST or 127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on.", min=0, max=65535, show_default="EQUIPOISE_PORT or 8000")
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the database and the artifacts.", show_default="EQUIPOISE_STATE_DIR or var"),
    ] = None,
) -> None:
    """Serve models over REST. Stays in the foreground; Ctrl-C stops it."""
    from service import server

    chosen: dict[str, Any] = {"host": host, "port": port, "state_dir": state_dir}
    settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
    server.serve(settings, bundles or [])


def worker(
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the database and the artifacts.", show_default="EQUIPOISE_STATE_DIR or var"),
    ] = None,
    line: Annotated[bool, typer.Option("--line", hidden=True, help="Standard input leads to the server.")] = False,
    bounded: Annotated[bool, typer.Option("--bounded", hidden=True, help="The environment bounds threads.")] = False,
) -> None:
    """Do the jobs of a service (refits, imports) in the foreground; `equipoise serve` starts one by itself."""
    settings = Settings() if state_dir is None else Settings(state_dir=state_dir)
    if not (line or bounded):  # NumPy, which is loaded already, reads the bound on its threads when it is loaded
        command = [sys.executable, "-m", "service", "worker", "--bounded"]
        os.execve(sys.executable, command, environment_of(settings))
    from service import worker as process

    process.run(settings, line=line)


def score(
    target: Annotated[
        str,
        typer.Argument(help="A bundle folder or .tar, or the URL of a served model: http://HOST:PORT/v1/models/NAME."),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    prior: Annotated[
        str | None,
        typer.Option(
            help="Class law of the place the images come from: uniform, training, none, a stored name, or JSON.",
            show_default="the model's active prior",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes to show for each image.", min=1)] = 3,
    key: Annotated[
        str | None,
        typer.Option(
            help="API key for a running service.", envvar="EQUIPOISE_KEY", show_envvar=True, show_default=False
        ),
    ] = None,
) -> None:
    """Score image files with a bundle, or with a running service."""
    files = {str(path): _read(path) for path in images}
    if target.startswith(("http://", "https://")):
        answers = [_ask(target, data, prior, top_k, key) for data in files.values()]
    else:
        from service.runtime.offline import score_files

        answers = score_files(Path(target), list(files.values()), prior=prior, top_k=top_k)
    table = Table("image", "class", "score")
    for name, answer in zip(files, answers, strict=True):
        for rank, entry in enumerate(answer["top"]):
            table.add_row(name if rank == 0 else "", entry["class"], f"{entry['score']:.4f}")
    console.print(table)


def demo(
    once: Annotated[
        bool,
        typer.Option("--once", help="Check the whole way over HTTP, stop the server, exit 0 if all is as it should."),
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the service.", envvar="PORT")] = 8000,
    folder: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = Path("var/demo"),
) -> None:
    """Train on handwritten digits with a long tail, calibrate, export, serve: the whole way in a minute."""
    from service.cli import demonstration

    demonstration.run(folder, port=port, once=once)


def _ask(url: str, data: bytes, prior: str | None, top_k: int, key: str | None) -> dict[str, Any]:
    options = {"top_k": str(top_k)} | ({} if prior is None else {"prior": prior})
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        response = httpx.post(f"{url.rstrip('/')}/scores", content=data, params=options, headers=headers, timeout=60.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CalibrationError(f"{url} does not answer: {error}. Is the service running there?") from error
    try:
        answer = response.json()
        if response.is_success:
            return dict(answer["results"][0])
        refusal = str(answer["detail"])
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{url} is not a model of an Equipoise service; it answered with status {response.status_code}. "
            "The URL ends in /v1/models/NAME."
        ) from error
    raise CalibrationError(f"the service refused: {refusal}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}.") from error

"""Commands for the file of API keys. A running service takes a change over within a second or two."""

from datetime import UTC
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from models.calibration.errors import CalibrationError
from service.cli.terminal import console, say
from service.keys import KeyScope, changing, new_key, read_keys
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="API keys of the service: create, list, revoke.")
File = Annotated[
    Path | None, typer.Option("--file", help="File of the keys.", show_default="EQUIPOISE_KEYS_FILE, which is needed")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it, for logs and for the history.", show_default=False)],
    scope: Annotated[KeyScope, typer.Option(help="What it may do; manage includes score.")] = "score",
    file: File = None,
) -> None:
    """Make a key and print it: once, on standard output alone. The file keeps its hash only."""
    path = _chosen(file)
    entry, key = new_key(name, scope)
    with changing(path) as keys:
        keys.append(entry)
    typer.echo(f"Key {entry.id} of {name!r} with the scope {scope} is in {path}. It is not shown again:", err=True)
    typer.echo(key)


@app.command("list")
def list_keys(file: File = None) -> None:
    """Show the keys; the secrets are not kept."""
    table = Table("id", "name", "scopes", "created (UTC)")
    for key in read_keys(_chosen(file)):
        created = key.created_at.astimezone(UTC)
        table.add_row(key.id, escape(key.name), ", ".join(key.scopes), f"{created:%Y-%m-%d %H:%M}")
    console.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.", show_default=False)],
    file: File = None,
) -> None:
    """Remove a key: nobody gets in with it any more."""
    path = _chosen(file)
    with changing(path) as keys:
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            known = ", ".join(key.id for key in keys) or "none"
            raise CalibrationError(f"{path} has no key with the id {key_id!r}; its ids are: {known}.")
        keys.remove(found)
    say(f"Key {found.id} of {found.name!r} is revoked.")


def _chosen(file: Path | None) -> Path:
    path = file or Settings().keys_file
    if path is None:
        raise CalibrationError("no file of keys is named. Give --file FILE, or set EQUIPOISE_KEYS_FILE.")
    return path

"""What the commands show: messages, progress, tables of figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False)


def say(message: str) -> None:
    """A message as it is: no line broken inside a path that somebody will copy, no [brackets] taken for markup."""
    console.print(message, soft_wrap=True, markup=False)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as messages, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


class EpochsBar:
    """A progress bar that is called with (epoch, epochs, loss) and appears with the first call: not before an error."""

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task(title, total=None, said="")

    def __enter__(self) -> "EpochsBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, epoch: int, epochs: int, loss: float) -> None:
        self._bar.start()
        self._bar.update(self._task, completed=epoch, total=epochs, said=f"epoch {epoch}/{epochs}, loss {loss:.3f}")


def figures_table(rows: dict[str, Any]) -> Table:
    """A row of percentages (NLL in nats) for each name -> Metrics."""
    table = Table("", "accuracy", "many", "medium", "few", "ECE", "NLL")
    for name, metrics in rows.items():
        shares = (metrics.balanced_accuracy, metrics.many, metrics.medium, metrics.few, metrics.ece)
        cells = ["-" if share.value is None else f"{100 * share.value:.1f}" for share in shares]
        table.add_row(name, *cells, f"{metrics.nll.value:.3f}")
    return table

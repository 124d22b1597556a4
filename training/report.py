"""The report on one or several runs: figures, comparisons and plots in one HTML page, the numbers beside it as JSON."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from models.calibration.errors import CalibrationError
from models.calibration.metrics import FEW_BELOW, GROUPS, MANY_ABOVE, NUM_BINS
from training.report_figures import report_runs
from training.report_plots import Plot, draw
from training.run_folder import write_json

__all__ = ["report_runs", "to_html", "write_report"]

NOTHING = "-"
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:76rem;margin:0 auto;padding:1rem}
h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem}h3{font-size:1rem;margin:0 0 .5rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.3rem .7rem;border-bottom:1px solid #ddd}
td{font-variant-numeric:tabular-nums}tbody th{font-weight:600}
figcaption,.note{color:#444;font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1.5rem}
figure{margin:0;min-width:0}svg{width:100%;height:auto}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:0 1rem;margin:.2rem 0;padding:0;font-size:.85rem}
"""
# nothing is fetched, even if a name were to get past the escaping
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NOTES = f"""
many: more than {MANY_ABOVE} training images, few: fewer than {FEW_BELOW}, medium: those between.
Every figure is of the test images. For accuracy, ECE and NLL every class weighs alike, as for the calibrated scores;
F1 is the mean over classes, class-wise ECE and Brier score are means over the images as they come.
Calibration errors use {NUM_BINS} bins of equal width. Class-wise ECE falls as classes grow in number: compare it at
equal numbers.
In parentheses: 95 % bootstrap intervals over the test images of one network, without the spread between seeds.
Accuracies, F1 and calibration errors are in percent, NLL in nats.
"""


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write `out` (.html) and the JSON document beside it, in the place of an earlier report.

    Raises: CalibrationError for another ending or where it cannot be written; what `report_runs` raises.
    """
    if out.suffix != ".html":
        raise CalibrationError(f"a report is an .html file, with a .json beside it; got {out}. Name it report.html.")
    document = report_runs(folders)
    page = to_html(document)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
        write_json(out.with_suffix(".json"), document)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise CalibrationError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from error


def to_html(document: dict[str, Any]) -> str:
    """One page that needs nothing else: style and plots are inside, no script, every name escaped.

    Args: document, of `report_runs`, also when read back from its JSON.
    """
    runs = document["runs"]
    names = ", ".join(run["name"] for run in runs)
    parts = [
        f"<h1>{escape('Runs' if len(runs) > 1 else 'Run')} {escape(names)}</h1>",
        "<h2>Figures</h2>",
        _figures(runs),
        _note(NOTES),
        _differences(document),
        "<h2>How they were made</h2>" if len(runs) > 1 else "<h2>How it was made</h2>",
        _made(runs),
        *_plots(draw(document)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(names)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _figures(runs: Sequence[dict[str, Any]]) -> str:
    shares = ("accuracy", *GROUPS)
    header = ("run", "scores", *shares, "macro-F1", "ECE", "class-wise ECE", "NLL", "Brier", "test images")
    rows = []
    for run in runs:
        for row in run["rows"]:
            cells = [row["name"], *(_interval(row[each]) for each in shares), _percent(row["macro_f1"])]
            cells += [_interval(row["ece"]), _percent(row["class_wise_ece"]), _interval(row["nll"], _number)]
            items = ", ".join(f"{group} {count}" for group, count in row["items"].items())
            rows.append((run["name"], *cells, _number(row["brier"]), items))
    return _table(header, rows)


def _differences(document: dict[str, Any]) -> str:
    """Calibrated against raw, then run against run; empty where there is nothing to compare."""
    rows = [
        (f"{run['name']}, {each['row']}", f"{run['name']}, {each['to']}", _interval(each, _points))
        for run in document["runs"]
        for each in run["differences"]
    ]
    for each in document["comparisons"]:
        if "left_out" in each:
            rows.append((each["run"], each["to"], each["left_out"]))
        else:
            rows.append(
                (f"{each['run']}, {each['row']}", f"{each['to']}, {each['to_row']}", _interval(each, _points)),
            )
    if not rows:
        return ""
    note = (
        "Class-balanced accuracy on the same test images, in percentage points, resampled in pairs within the classes."
    )
    return f'<h2>Differences</h2>{_table(("of", "to", "difference"), rows)}<p class="note">{escape(note)}</p>'


def _made(runs: Sequence[dict[str, Any]]) -> str:
    columns = [_facts(run) for run in runs]
    rows = [(fact, *(column[fact] for column in columns)) for fact in columns[0]]
    return _table(("", *(run["name"] for run in runs)), rows)


def _facts(run: dict[str, Any]) -> dict[str, str]:
    """What a run was made of, in words."""
    training, ledger, fitted = run["training"], run["ledger"], run["calibration"]
    counts, second = run["class_counts"], training["second_stage"]
    ratio = f", imbalance ratio {run['imbalance_ratio']:g}" if run["imbalance_ratio"] else ""
    tau = "" if training["tau"] is None else f", tau {training['tau']:g}"
    gap = ledger["gap_to_rule"]
    return {
        "data": f"{run['data']}{ratio}: {len(counts)} classes of {min(counts)} to {max(counts)} training images",
        "loss": f"{training['loss']}{tau}",
        "backbone": training["backbone"],
        "norm": training["norm"],
        "head": training["head"] + (", rectified" if training["rectify"] else ""),
        "CIBL alpha": _or_nothing(training["cibl_alpha"]),
        "second stage": NOTHING if second is None else f"{second['sampler']} sampler, {second['steps']} steps",
        "epochs": f"{training['epochs']} of batch {training['batch_size']}",
        "seed": str(training["seed"]),
        "precision": training["precision"],
        "code revision": _revision(training["code"]),
        "ledger": f"{ledger['trained_with']}, implied prior by {ledger['source']}",
        "gap to the rule": NOTHING if gap is None else f"{gap:.4f}",
        "calibration": NOTHING if fitted is None else fitted["reason"] or fitted["method"],
    }


def _plots(plots: Sequence[Plot]) -> Iterable[str]:
    for section, members in groupby(plots, key=lambda plot: plot.section):
        figures = "\n".join(map(_figure, members))
        yield f'<h2>{escape(section)}</h2>\n<div class="plots">\n{figures}\n</div>'


def _figure(plot: Plot) -> str:
    legend = "".join(
        f'<li><span style="color:{colour}">{sign}</span> {escape(label)}</li>' for sign, colour, label in plot.legend
    )
    listed = f'<ul class="legend">{legend}</ul>' if legend else ""
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<figure><h3>{escape(plot.title)}</h3>{plot.svg}{listed}{caption}</figure>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first cell of a row heads it; cells are escaped here."""
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(interval: dict[str, Any], show: Callable[[float], str] = _percent) -> str:
    if interval["value"] is None:
        return NOTHING
    return f"{show(interval['value'])} ({show(interval['low'])} to {show(interval['high'])})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _or_nothing(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _revision(code: str | None) -> str:
    """The first 12 digits, and the + of a changed tree."""
    return NOTHING if code is None else re.sub(r"^([0-9a-f]{12})[0-9a-f]*", r"\1", code)

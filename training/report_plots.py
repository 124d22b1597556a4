"""The plots of a report, drawn from its JSON document alone: inline SVG without names, the legend beside it as data.

Names stay out of the drawing, so that no run folder's name can be taken for mathematics or lack a glyph.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#0b5394", "#c0392b", "#1b7a3d", "#6b3fa0", "#8a5a00", "#333333", "#0e7c86")  # all dark on white
MARKERS = {"o": "●", "^": "▲", "s": "■", "D": "◆"}  # as drawn: as written in the legend
LINE = "—"
SIZE_INCHES = (4.8, 3.1)  # one panel, so that a phone still shows its letters at about 10 pixels
GUIDE = "#666666"
CROWDED_ABOVE, CROWDED_SIZE = 400, 2.5  # markers of a plot; more are small and pixels, as each is 100 bytes of SVG
RASTER_DPI = 130
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and read aloud
    "svg.image_inline": True,
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "font.size": 10.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
COUNT_LABEL = "training images of the class"


Kind = Literal["points", "line", "joined points", "guide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points to draw; those with None are left out. `errors`, (low, high) of each point that is there."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: Kind = "points"
    errors: Sequence[tuple[float, float]] | None = None

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is to be drawn; `y_range` where the data shall not decide."""

    section: str
    title: str
    caption: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_x: bool = False
    whole_x: bool = False
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing: `section` groups the same plot of several runs; `legend` is (sign, colour, label); all but `svg` is
    text still to be escaped."""

    section: str
    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, str, str], ...]


def draw(document: dict[str, Any]) -> list[Plot]:
    """All plots of the document of `report_runs` that there are data for; the same document gives the same bytes."""
    charts = (chart for chart in _charts(document) if any(series.points for series in chart.series))
    return [_drawn(chart, number) for number, chart in enumerate(charts)]


def _charts(document: dict[str, Any]) -> Iterator[Chart]:
    """Section by section, in each run by run."""
    reports = document["runs"]
    for kind in (_training, _accuracy, _logits, _margins, _reliability):
        for report in reports:
            yield from kind(report)
    yield _feature_lengths(reports)
    for curve in document["alpha_curves"]:
        yield _alpha(curve)
    for report in reports:
        yield from _second_stage(report)


def _training(report: dict[str, Any]) -> Iterator[Chart]:
    curves = report["curves"]
    if curves is None:
        return
    shown = {"loss": ("mean loss", "The training loss of each epoch.")}
    shown["validation_accuracy"] = ("accuracy", "Class-balanced accuracy on the validation images after each epoch.")
    for what, (label, caption) in shown.items():
        if curves[what] is not None:
            yield Chart(
                section="Training",
                title=report["name"],
                caption=caption,
                series=[_course(label, curves["epoch"], curves[what])],
                x_label="epoch",
                y_label=label,
                whole_x=True,
            )


def _accuracy(report: dict[str, Any]) -> Iterator[Chart]:
    by_row = {row["name"]: row["accuracy_by_class"] for row in report["rows"]}
    yield Chart(
        section="Accuracy by class",
        title=report["name"],
        caption="Each point is a class: the share of its test images that are decided rightly.",
        series=_against_counts(report, by_row),
        x_label=COUNT_LABEL,
        y_label="accuracy",
        log_x=True,
        y_range=(-0.03, 1.03),
    )


def _logits(report: dict[str, Any]) -> Iterator[Chart]:
    caption = "Each point is a class: the mean of its own logit over its test images."
    yield _before_and_after(report, "mean_logit", "Mean logit by class", caption)


def _margins(report: dict[str, Any]) -> Iterator[Chart]:
    caption = (
        "Each point is a class: the mean over its test images of its logit divided by the norm of its weights, that is "
        "of the distance to its plane (Wang et al., ACML 2022)."
    )
    yield _before_and_after(report, "mean_margin", "Mean margin by class", caption)


def _before_and_after(report: dict[str, Any], what: str, section: str, caption: str) -> Chart:
    known = {row: value for row, value in report["correlations"][what].items() if value is not None}
    correlation = ", ".join(f"{row} {value:.2f}" for row, value in known.items())
    said = f" Correlation with the log of the training images: {correlation}." if known else ""
    return Chart(
        section=section,
        title=report["name"],
        caption=f"{caption} Logits are centred over the classes, before and after the calibration.{said}",
        series=_against_counts(report, report[what]),
        x_label=COUNT_LABEL,
        y_label=what.replace("_", " "),
        log_x=True,
    )


def _reliability(report: dict[str, Any]) -> Iterator[Chart]:
    series = []
    for row in report["rows"]:
        bins = row["reliability"]
        known = [(x, y) for x, y in zip(bins["confidence"], bins["accuracy"], strict=True) if x is not None]
        series.append(Series(label=row["name"], x=[x for x, _ in known], y=[y for _, y in known], kind="joined points"))
    series.append(Series(label="as confident as right", x=(0.0, 1.0), y=(0.0, 1.0), kind="guide"))
    yield Chart(
        section="Reliability",
        title=report["name"],
        caption="Each point is a bin of confidence, every class weighing alike. Below the line: too confident.",
        series=series,
        x_label="mean confidence",
        y_label="accuracy",
    )


def _feature_lengths(reports: Sequence[dict[str, Any]]) -> Chart:
    series = [
        Series(label=report["name"], x=report["class_counts"], y=report["feature_length"])
        for report in reports
        if report["feature_length"] is not None
    ]
    return Chart(
        section="Feature strength",
        title="All runs" if len(reports) > 1 else reports[0]["name"],
        caption="Each point is a class: the mean length of the feature vectors of its test images. Batch normalisation "
        "leaves rare classes with the weaker features; NBN is meant to even them out.",
        series=series,
        x_label=COUNT_LABEL,
        y_label="mean length",
        log_x=True,
    )


def _alpha(curve: dict[str, Any]) -> Chart:
    series = [
        Series(
            label=group,
            x=curve["alpha"],
            y=[each["value"] for each in curve[group]],
            errors=[(each["low"], each["high"]) for each in curve[group] if each["value"] is not None],
            kind="joined points" if len(set(curve["alpha"])) == len(curve["alpha"]) else "points",  # several seeds
        )
        for group in ("many", "medium", "few")
    ]
    return Chart(
        section="CIBL's trade-off",
        title=", ".join(curve["runs"]),
        caption="Raw accuracy by class size against CIBL's alpha, with 95 % intervals; the runs differ in nothing "
        "else, but for their seeds.",
        series=series,
        x_label="alpha",
        y_label="accuracy",
        log_x=min(curve["alpha"]) > 0,
    )


def _second_stage(report: dict[str, Any]) -> Iterator[Chart]:
    stage = report["second_stage"]
    if stage is None:
        return
    steps = range(1, len(stage["losses"]) + 1)
    yield Chart(
        section="Second stage",
        title=report["name"],
        caption="The Balanced Softmax loss of each step.",
        series=[_course("loss", steps, stage["losses"])],
        x_label="step",
        y_label="mean loss",
        whole_x=True,
    )
    if stage["rates"] is not None:
        yield Chart(
            section="Second stage",
            title=report["name"],
            caption="Each point is a class: how often the Meta Sampler drew one of its images in the end, relative "
            "to the others.",
            series=[Series(label="rate", x=report["class_counts"], y=stage["rates"])],
            x_label=COUNT_LABEL,
            y_label="rate of an image",
            log_x=True,
        )


def _course(label: str, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(label=label, x=x, y=y, kind="line" if len(y) > 1 else "points")


def _against_counts(report: dict[str, Any], by_row: dict[str, list[float | None]]) -> list[Series]:
    return [Series(label=row, x=report["class_counts"], y=values) for row, values in by_row.items()]


def _drawn(chart: Chart, number: int) -> Plot:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"plot-{number}"}):  # the salt keeps ids of plots apart
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        panel = figure.subplots()
        shown = [series for series in chart.series if series.points]
        crowded = sum(len(series.points) for series in shown if series.kind == "points") > CROWDED_ABOVE
        legend = tuple(_add(panel, series, index, crowded) for index, series in enumerate(shown))
        panel.set_xlabel(chart.x_label)
        panel.set_ylabel(chart.y_label)
        if chart.log_x:
            _logarithmic(panel)
        if chart.whole_x:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if chart.y_range is not None:
            panel.set_ylim(*chart.y_range)
        svg = _svg(figure, f"{chart.section}: {chart.y_label} against {chart.x_label}")
    return Plot(
        section=chart.section,
        title=chart.title,
        caption=chart.caption,
        svg=svg,
        legend=legend if len(legend) > 1 else (),
    )


def _add(panel: Axes, series: Series, index: int, crowded: bool) -> tuple[str, str, str]:
    """Returns: the series' line of the legend."""
    x, y = np.array(series.points).T
    if series.kind == "guide":
        panel.plot(x, y, color=GUIDE, linestyle="--", linewidth=1.0)
        return LINE, GUIDE, series.label
    colour = COLOURS[index % len(COLOURS)]
    if series.kind == "line":
        panel.plot(x, y, color=colour)
        return LINE, colour, series.label
    marker = list(MARKERS)[index % len(MARKERS)]
    style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none" if series.kind == "points" else "-"}
    if series.errors is not None:
        low, high = np.array(series.errors).T  # a percentile interval need not hold its value
        panel.errorbar(x, y, yerr=(np.maximum(y - low, 0), np.maximum(high - y, 0)), capsize=3, **style)
    elif crowded:
        panel.plot(x, y, markersize=CROWDED_SIZE, markeredgewidth=0, rasterized=True, **style)
    else:
        panel.plot(x, y, **style)
    return MARKERS[marker], colour, series.label


def _logarithmic(panel: Axes) -> None:
    """A log axis with plain numbers at 1, 2 and 5, or at powers of ten where they would crowd."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, description: str) -> str:
    """The <svg> element alone, without date, maker and foreign addresses; ids of groups, which nothing refers to, are
    taken off, as they would stand twice in a page."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", dpi=RASTER_DPI, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1).strip()

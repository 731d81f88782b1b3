"""What was measured, as a table, as pictures and as `README.md`."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.measure import Run

_MIB = 2**20
_OURS = "#1e61f0"
_OTHERS = {
    "published recipe": "#c2410c",
    "published package": "#7c3aed",
    "stock decoders only": "#64748b",
    "CDK, prebuilt records": "#94a3b8",
    "floor (no CDK)": "#cbd5e1",
}


_READING = """\
All programs read the same archives, made beforehand and served by the sandbox in a process of its
own, and print to a pipe that is drained and counted: a program that delivers less or more events
than there are fails the benchmark. They take turns, round by round, and a ratio is that of one
round. Events per second are those of the whole process without its start-up, which is what the same
command takes for a project of one event. "Speed / X" is source-amplitude's events per second
divided by X's, at the default concurrency.

- **published recipe**: a manifest that does what published connectors do (`ZipfileDecoder`,
  `GzipDecoder`, `JsonlDecoder`, and `ab_datetime_parse` on seven timestamps per event), in the
  CDK's own runner with two workers. It reads only the first half of the days.
- **stock decoders only**: the same without any work on timestamps.
- **published package**: `airbyte-source-amplitude==0.6.19` as pip installs it, with its own CDK.
- **floor**: one thread that downloads, inflates, parses with orjson and prints, without the CDK.
- **CDK, prebuilt records**: the same manifest with records that cost nothing to make.
- **files**: the stream raw_events_files, which unpacks each file to check it; **curl** gets the
  archives from the same sandbox, hour by hour over one connection, into files as well.

Memory is the process's high-water mark (`VmHWM`). Its archives consist of events with a random
payload, which hardly compresses: 2 GB of ordinary events would be six million. Temporary space is
what the process holds in unlinked files of `TMPDIR`."""


@dataclass(frozen=True)
class Figure:
    """A line of the table; `holds` is None for what has no target or could not be measured."""

    name: str
    archives: str
    target: str
    measured: str
    holds: bool | None = None


@dataclass
class Report:
    """All that the scenarios found.

    Args:
        rates: events per second by window (hours), program and round.
        cpu: CPU seconds per million events, likewise.
        memory: one run by archive (its size in words) and program.
        paused: one run of ours by size of the events, with an output that pauses.
        pause: for how many seconds.
    """

    figures: list[Figure] = field(default_factory=list)
    rates: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    cpu: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    memory: dict[str, dict[str, Run]] = field(default_factory=dict)
    paused: dict[str, Run] = field(default_factory=dict)
    pause: float = 0.0
    paragraphs: list[str] = field(default_factory=list)

    def at_least(self, name: str, archives: str, target: float, values: Sequence[float]) -> None:
        """Add a figure whose median is to be `target` or more."""
        holds = median(values) >= target
        self.figures.append(Figure(name, archives, f"≥ {target:g}", _spread(values), holds))

    def at_most(
        self, name: str, archives: str, target: float, values: Sequence[float], unit: str = ""
    ) -> None:
        """Add a figure whose median is to be `target` or less."""
        holds = median(values) <= target
        measured = _spread(values, unit, digits=0 if unit else 2)
        self.figures.append(Figure(name, archives, f"≤ {target:g}{unit}", measured, holds))

    def fact(self, name: str, archives: str, target: str, measured: str, holds: bool) -> None:
        """Add a figure that is no number."""
        self.figures.append(Figure(name, archives, target, measured, holds))

    def no_target(self, name: str, archives: str, values: Sequence[float]) -> None:
        """Add a figure that is there to be known."""
        self.figures.append(Figure(name, archives, "", _spread(values)))

    def missing(self, name: str, reason: str) -> None:
        """Add a figure that could not be measured."""
        self.figures.append(Figure(name, "", "", f"not measured: {reason}"))

    def table(self) -> str:
        """The figures in Markdown."""
        rows = [("", "archives", "target", "median (lowest to highest)", "")]
        verdicts = {True: "holds", False: "**missed**", None: ""}
        rows += [
            (f.name, f.archives, f.target, f.measured, verdicts[f.holds]) for f in self.figures
        ]
        return _markdown(rows)

    def write(self, folder: Path) -> None:
        """Write README.md and the pictures to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = ["# The benchmark's last run", _machine(), self.table()]
        if self.rates:
            _draw_rates(self.rates, folder / "events-per-second.png")
            parts += ["## Events per second", _by_window(self.rates)]
            parts += ["![Events per second](events-per-second.png)"]
            parts += ["## CPU seconds per million events", _by_window(self.cpu, 1)]
        if self.paused:
            _draw_pauses(self.paused, self.pause, folder / "pause.png")
            parts += ["## Memory while the output pauses", "![Memory in a pause](pause.png)"]
        if self.memory:
            _draw_memory(self.memory, folder / "memory.png")
            parts += ["## Resident memory", self._memory_table()]
            parts += ["![Resident memory over time](memory.png)"]
        parts += ["## How to read this", _READING, *self.paragraphs]
        (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def _memory_table(self) -> str:
        names = list(dict.fromkeys(name for runs in self.memory.values() for name in runs))
        rows = [("", *self.memory)]
        for name in names:
            cells = (runs.get(name) for runs in self.memory.values())
            rows.append((name, *(_peak(cell) if cell else "" for cell in cells)))
        return _markdown(rows)


def _by_window(figures: dict[int, dict[str, list[float]]], digits: int = 0) -> str:
    """A row per program, a column per size of the windows."""
    windows = sorted(figures, reverse=True)
    names = list(dict.fromkeys(name for window in windows for name in figures[window]))
    rows = [("", *(f"windows of {window} h" for window in windows))]
    for name in names:
        cells = (figures[window].get(name) for window in windows)
        rows.append((name, *(_spread(cell, digits=digits) if cell else "" for cell in cells)))
    return _markdown(rows)


def _peak(run: Run) -> str:
    more = "more than " if run.is_stopped else ""
    return f"{more}{run.peak_resident / _MIB:,.0f} MiB in {run.seconds:,.0f} s"


def _spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    middle, low, high = (f"{v:,.{digits}f}" for v in (median(values), min(values), max(values)))
    return f"{middle}{unit}" + (f" ({low} to {high})" if len(values) > 1 else "")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    rule = ["-" * max(width, 3) for width in widths]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def _machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, {cpu[1] if cpu else platform.machine()}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, airbyte-cdk {version('airbyte-cdk')}, "
        f"source-amplitude {version('airbyte-source-amplitude')}."
    )


def _draw_rates(rates: dict[int, dict[str, list[float]]], file: Path) -> None:
    """Bars: the median; whiskers: the slowest and the fastest round."""
    windows = sorted(rates, reverse=True)
    figure, panels = plt.subplots(
        len(windows),
        figsize=(9, 0.9 + sum(0.9 + 0.42 * len(rates[window]) for window in windows)),
        dpi=150,
        layout="constrained",
        sharex=True,
        squeeze=False,
        height_ratios=[len(rates[window]) + 1 for window in windows],
    )
    for axes, window in zip(panels[:, 0], windows, strict=True):
        ranked = sorted(rates[window].items(), key=lambda item: median(item[1]))
        for place, (name, values) in enumerate(ranked):
            middle = median(values)
            axes.barh(place, middle, height=0.7, color=_OTHERS.get(name, _OURS))
            if len(values) > 1:
                reach = [[middle - min(values)], [max(values) - middle]]
                axes.errorbar(middle, place, xerr=reach, color="0.25", linewidth=1, capsize=3)
            axes.annotate(
                f"{middle:,.0f}",
                (max(values), place),
                (8, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
            )
        axes.set_yticks(range(len(ranked)), [name for name, _ in ranked])
        axes.set_title(
            f"Events per second, windows of {window} h", loc="left", fontweight="bold", fontsize=11
        )
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _clean(axes, "x")
    _save(figure, file)


def _draw_pauses(paused: dict[str, Run], pause: float, file: Path) -> None:
    """A line by size of the events, all in shades of one colour; the pause of the first, grey."""
    figure, axes = plt.subplots(figsize=(9, 3.6), dpi=150, layout="constrained")
    for shade, (size, run) in enumerate(paused.items(), start=1):
        x = [sample.seconds for sample in run.samples]
        y = [sample.resident / _MIB for sample in run.samples]
        alpha = 0.25 + 0.75 * shade / len(paused)
        axes.plot(x, y, color=_OURS, alpha=alpha, linewidth=2, label=f"events of {size}")
    first = min(run.first_record for run in paused.values())
    axes.axvspan(first, first + pause, color="0.95", zorder=0)
    axes.set_title(
        "Resident memory, MiB, of a read whose output pauses after the first record",
        loc="left",
        fontweight="bold",
        fontsize=11,
    )
    axes.set_xlabel("seconds", loc="left", color="0.35")
    axes.set_xlim(left=0)
    axes.set_ylim(0, max(250, *(run.peak_resident / _MIB for run in paused.values())))
    axes.legend(frameon=False, ncols=4, loc="upper left")
    _clean(axes, "y")
    _save(figure, file)


def _draw_memory(memory: dict[str, dict[str, Run]], file: Path) -> None:
    """A panel per archive, a line per program, on a logarithmic scale that they share."""
    figure, panels = plt.subplots(
        1, len(memory), figsize=(11, 4.2), dpi=150, layout="constrained", sharey=True, squeeze=False
    )
    for axes, (size, runs) in zip(panels[0], memory.items(), strict=True):
        for name, run in runs.items():
            x = [sample.seconds for sample in run.samples]
            y = [sample.resident / _MIB for sample in run.samples]
            is_ours = name not in _OTHERS
            axes.plot(
                x,
                y,
                color=_OTHERS.get(name, _OURS),
                linewidth=2.2 if is_ours else 1.4,
                label=name,
                zorder=3 if is_ours else 2,
                solid_capstyle="round",
            )
            axes.plot(
                x[-1:], y[-1:], "x" if run.is_stopped else "o", ms=5, color=_OTHERS.get(name, _OURS)
            )
        axes.set_title(f"{size} zipped", loc="left", fontweight="bold", fontsize=11)
        axes.set_xlabel("seconds", loc="left", color="0.35")
        axes.set_yscale("log", base=2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(LogLocator(base=2))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_mebibytes))
        _clean(axes, "y")
    handles, labels = panels[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(
        "Resident memory of one read of a day's archive", x=0.008, ha="left", fontweight="bold"
    )
    _save(figure, file)


def _mebibytes(value: float, _: float) -> str:
    return f"{value / 1024:g} GiB" if value >= 1024 else f"{value:g} MiB"


def _clean(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="0.9")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left" if grid == "y" else "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, bbox_inches="tight", pad_inches=0.2)
    plt.close(figure)

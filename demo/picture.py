"""A picture of a synced project, drawn from its DuckDB file by SQL."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

_COLOUR = "#1e61f0"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlepad": 12,
    "axes.xmargin": 0.01,
    "date.autoformatter.day": "%d %b",
    "date.autoformatter.hour": "%d %b %H:%M",
    "date.autoformatter.month": "%b %Y",
    "xtick.major.pad": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

# Hours without events have no rows to count; the range gives them their 0.
EVENTS_PER_HOUR = """
    WITH arrived AS (SELECT date_trunc('hour', server_upload_time) AS hour FROM events)
    SELECT hours.hour, count(arrived.hour)
    FROM (SELECT unnest(range(min(hour), max(hour) + INTERVAL 1 HOUR, INTERVAL 1 HOUR)) AS hour
          FROM arrived) AS hours
    LEFT JOIN arrived USING (hour)
    GROUP BY ALL ORDER BY ALL
"""

DAILY_ACTIVE_USERS = """
    SELECT date, list_sum(map_values(CAST(statistics AS MAP(VARCHAR, BIGINT))))
    FROM active_users
    ORDER BY date
"""


def draw(db: Path, picture: Path) -> bool:
    """Draw events per hour and daily active users as a PNG, as far as `db` holds them.

    Returns whether there was anything to draw.
    """
    with duckdb.connect(str(db), read_only=True) as connection:
        tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        hours = connection.execute(EVENTS_PER_HOUR).fetchall() if "events" in tables else []
        days = connection.execute(DAILY_ACTIVE_USERS).fetchall() if "active_users" in tables else []
    if not hours and not days:
        return False
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 6.5), dpi=150, layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        if hours:
            starts, counts = zip(*hours, strict=True)
            edges = [*starts, starts[-1] + timedelta(hours=1)]
            above.stairs(counts, edges, fill=True, color=_COLOUR, alpha=0.25)
            above.stairs(counts, edges, color=_COLOUR, linewidth=1.2)
        _label(above, "Events per hour", "hour of server_upload_time, UTC")
        if days:
            dates, users = zip(*days, strict=True)
            width = 0.9 if len(dates) < 100 else 1
            bars = below.bar(dates, users, width, align="edge", color=_COLOUR)
            bars[-1].set_alpha(0.45)
        _label(below, "Daily active users", "project's time zone; the last day is unfinished")
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, bbox_inches="tight", pad_inches=0.25)
    return True


def _label(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_title(subtitle, loc="right", fontsize="small", color="0.4")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.9")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

"""The parameters of a request, and the dates in them."""

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta

Params = dict[str, str]


class Query(Params):
    """Parameters by name; of one that is repeated, the last. `pairs` are all, in their order."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = [*pairs]
        super().__init__(self.pairs)

    def all(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return [value for key, value in self.pairs if key == name]


def days(params: Params) -> list[date]:
    """The days from `start` to `end`, both inclusive.

    Raises:
        ValueError: they are no dates, or in the wrong order.
    """
    start, end = (parse_day(params.get(name, "")) for name in ("start", "end"))
    if end < start:
        raise ValueError("The start is after the end")
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def parse_day(value: str, mark: str = "") -> date:
    """A date such as `20240131`, with `mark` between its parts."""
    if not re.fullmatch(rf"\d{{4}}{mark}\d\d{mark}\d\d", value):
        raise ValueError(f"Invalid date {value!r}")
    return datetime.strptime(value, f"%Y{mark}%m{mark}%d").date()

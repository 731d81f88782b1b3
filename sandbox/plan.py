"""What people have entered by hand: the tracking plan and the lookup tables of every project."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

PLANS = ["free", "pro", "family"]
EVENT_CATEGORIES: list[Row] = [
    {"id": 412931, "name": "Navigation"},
    {"id": 412932, "name": "Listening"},
    {"id": 412933, "name": "Shop & Konto"},
]

# event type, category, description, display name, tags, owner, is deleted
_EVENTS: list[tuple[str, str | None, str | None, str, list[str], str | None, bool]] = [
    ("Page Viewed", "Navigation", None, "Page viewed", [], None, False),
    ("Song Played 🎧", "Listening", "A song was heard for\n30 seconds.", "Song played",
     ["core", "music"], "demo@example.com", False),
    ("Search Performed", "Navigation", "Any search, “top 100” included", "Search", [], None, False),
    ("Checkout Completed", "Shop & Konto", "Paid & confirmed", "Purchase", ["core"],
     "demo@example.com", False),
    ("Signed Up", None, None, "Sign-up", [], None, False),
    ("Song Skipped", "Listening", "Replaced by 50 % progress", "Song skipped", [], None, True),
]  # fmt: skip
# event type or None for a shared one, name, type, values of an enum, is array, is required, classes
_EVENT_PROPERTIES: list[
    tuple[str | None, str, str, list[str] | None, bool, bool, list[str]]
] = [
    (None, "campaign", "string", None, False, False, []),
    (None, "comment", "string", None, False, False, ["PII", "SENSITIVE"]),
    ("Page Viewed", "page", "any", None, False, True, []),
    ("Song Played 🎧", "duration_ms", "number", None, False, True, []),
    ("Song Played 🎧", "is_offline", "boolean", None, False, False, []),
    ("Song Played 🎧", "tags", "string", None, True, False, []),
    ("Checkout Completed", "items", "any", None, True, True, ["REVENUE"]),
    ("Checkout Completed", "campaign", "string", None, False, True, []),
    ("Signed Up", "plan", "enum", PLANS, False, False, []),
]  # fmt: skip
# name, type, values of an enum, pattern, is array, classes, is deleted
_USER_PROPERTIES: list[
    tuple[str, str | None, list[str] | None, str | None, bool, list[str], bool]
] = [
    ("device_id", None, None, None, False, ["PII"], False),
    ("country", None, None, None, False, [], False),
    ("gp:plan", "enum", PLANS, None, False, [], False),
    ("gp:email", "string", None, "^[^@]+@[^@]+$", False, ["PII"], False),
    ("gp:favourite_genres", "string", None, None, True, [], False),
    ("gp:shoe_size", "number", None, None, False, [], True),
]  # fmt: skip
# group type, name, type
_GROUP_PROPERTIES: list[tuple[str | None, str, str]] = [
    ("company", "grp:seats", "number"),
    ("company", "grp:industry", "string"),
    ("team", "grp:seats", "number"),
    (None, "grp:region", "string"),
]
# id, name, display name, description, rules
_CHANNEL_CLASSIFIERS = [
    ("368", "marketing", "Marketing Channel", "Where people come from",
     "utm_source,referrer,Channel\ngoogle,,Search\n,*,Referral\n"),
    ("371", "kampagnen", "Kampagnen 🌷", "TV and web\nGermany only",
     "utm_campaign,Channel\nspring,TV\n"),
]  # fmt: skip


def event_types(show_deleted: bool) -> list[Row]:
    """Event types of the plan; deleted ones only on demand.

    Source: https://amplitude.com/docs/apis/analytics/taxonomy (Get all event types).
    """
    places = ["dropdowns", "persona_results", "pathfinder", "timeline"]
    return [
        {
            "event_type": name,
            "category": {"name": category} if category else None,
            "description": description,
            "display_name": display_name,
            "is_active": not is_deleted,
            **{f"is_hidden_from_{place}": False for place in places},
            "tags": tags,
            "owner": owner,
        }
        for name, category, description, display_name, tags, owner, is_deleted in _EVENTS
        if show_deleted or not is_deleted
    ]


def event_properties(event_type: str | None) -> list[Row]:
    """Properties of an event type; with None all, and those that all share, whose own is None.

    Recorded: without `event_type` all are listed. A deleted event type has none.
    Source: https://amplitude.com/docs/apis/analytics/taxonomy (Get event properties).

    Raises:
        ValueError: there is no such event type.
    """
    if event_type not in (None, *(name for name, *_ in _EVENTS)):
        raise ValueError("Not found")
    return [
        {
            "event_property": name,
            "event_type": owner,
            "description": None if is_required else f"The {name} of the event",
            "type": kind,
            "regex": None,
            "enum_values": enum_values,
            "is_array_type": is_array,
            "is_required": is_required,
            "is_hidden": False,
            "classifications": classes,
        }
        for owner, name, kind, enum_values, is_array, is_required, classes in _EVENT_PROPERTIES
        if event_type in (None, owner)
    ]


def user_properties(show_deleted: bool) -> list[Row]:
    """User properties of the plan and of Amplitude's own; deleted ones only on demand.

    Source: https://amplitude.com/docs/apis/analytics/taxonomy (Get all user properties).
    """
    return [
        {
            "user_property": name,
            "description": None,
            "type": kind,
            "enum_values": enum_values,
            "regex": regex,
            "is_array_type": is_array,
            "is_hidden": False,
            "classifications": classes,
            "deleted": is_deleted,
        }
        for name, kind, enum_values, regex, is_array, classes, is_deleted in _USER_PROPERTIES
        if show_deleted or not is_deleted
    ]


def group_properties(group_type: str | None = None) -> list[Row]:
    """Group properties of the plan, of all group types or of one.

    Source: https://amplitude.com/docs/apis/analytics/taxonomy (Get group properties).
    """
    return [
        {
            "group_type": owner,
            "group_property": name,
            "description": None,
            "type": kind,
            "enum_values": None,
            "regex": None,
            "is_array_type": False,
            "is_hidden": False,
            "classifications": [],
        }
        for owner, name, kind in _GROUP_PROPERTIES
        if group_type in (None, owner)
    ]


def channel_classifiers() -> list[Row]:
    """Rules by which visits are counted under a channel.

    Source: https://amplitude.com/docs/apis/analytics/channel-classifiers.
    """
    return [
        {
            "id": number,
            "name": name,
            "displayName": display_name,
            "description": description,
            "csvText": text,
            "csvDefinition": {},
            "lastModified": f"2026-05-1{n}T18:09:22.275499",
        }
        for n, (number, name, display_name, description, text) in enumerate(_CHANNEL_CLASSIFIERS)
    ]


@dataclass(frozen=True)
class LookupTable:
    """A lookup table; the first of its columns is the key.

    Args:
        columns: their headers.
        property: the property that the key stands for: (event, user or group, name).
        rows: makes the rows anew.
    """

    name: str
    columns: tuple[str, ...]
    property: tuple[str, str]
    rows: Callable[[], Iterable[tuple[str, ...]]]

    def csv(self) -> Iterator[bytes]:
        """The table as CSV, with a header, in pieces of some 64 KB."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        for row in self.rows():
            writer.writerow(row)
            if text.tell() > 65536:
                yield text.getvalue().encode()
                text.seek(0)
                text.truncate()
        yield text.getvalue().encode()

    def description(self, project_id: int) -> Row:
        """The table as the list shows it; times are epoch seconds.

        Source: https://amplitude.com/docs/apis/analytics/lookup-table-2 (List all lookup tables).
        """
        kind, value = self.property
        return {
            "appId": str(project_id),
            "name": self.name,
            "columnHeaders": list(self.columns[1:]),
            "createdAt": 1715912516,
            "createdBy": "api",
            "lastModifiedAt": 1715912516 + len(self.name),
            "lastModifiedBy": "demo@example.com",
            "isDeleted": False,
            "isConfigured": True,
            "keyColumnHeader": self.columns[0],
            "keyProperty": {"type": kind, "value": value, "groupType": "User"},
            "fileName": f"{self.name}.csv",
            "rowCount": sum(1 for _ in self.rows()),
            "sizeBytes": sum(map(len, self.csv())),
        }


def _products() -> Iterator[tuple[str, ...]]:
    categories = ["Vinyl, used", 'LP 12"', "", "T-shirt\nwith print", "ポスター"]
    for n in range(2500):
        yield f"SKU-{n}", f"Product {n}", categories[n % 5], f"{9.99 + n:.2f}"


LOOKUP_TABLES = [
    LookupTable("skuToProduct", ("SKU", "Product", "Category", "Price"), ("event", "sku"),
                _products),
    LookupTable("Länder & Regionen 50%/?", ("country", "Region"), ("user", "country"),
                lambda: [("Côte d'Ivoire", "Africa"), ("Germany", "Europe"), ("Japan", "Asia")]),
    LookupTable("empty", ("plan", "Monthly price"), ("user", "gp:plan"), lambda: []),
]  # fmt: skip

"""Amplitude Experiment: what a management key reaches, in two projects, at any moment.

Each day one of the flags and experiments is saved, as its next version, so that nothing is stored:
the number of a day since the first one tells the flag and the version. What is listed at a moment
is its latest version by then.

Source: https://amplitude.com/docs/apis/experiment/experiment-management-api. Recorded are flags and
experiments, and that ids, projects and references are texts; of versions, mutexes and holdouts no
body is known.
"""

from datetime import date, datetime, timedelta, timezone
from hashlib import sha256
from itertools import count
from typing import Any

from sandbox.project import Project, Record

FIRST_DAY = date(2023, 7, 29)
_DAY = timedelta(days=1)
_PEOPLE = ["demo@example.com", "ann@example.com"]
# key, is an experiment, is archived, is in the second project, its variants
_FLAGS: list[tuple[str, bool, bool, bool, list[str]]] = [
    ("new-player", True, False, False, ["control", "treatment"]),
    ("dark-mode", False, False, False, ["on"]),
    ("price-page", True, False, False, ["control", "monthly", "yearly"]),
    ("offline-list", False, True, False, ["on"]),
    ("lyrics-🎤", False, False, True, ["on"]),
    ("onboarding", True, True, False, ["control", "treatment"]),
    ("kill-switch", False, False, True, ["on"]),
    ("ranking", True, False, True, ["control", "treatment"]),
]  # fmt: skip
# The numbers of those that nobody knows the history of, as was so with all in 2024.
_OLD = {1, 5}
# label, is a server's, is archived, is in the second project
_DEPLOYMENTS = [
    ("web", False, False, False),
    ("backend", True, False, False),
    ("old-app", False, True, False),
    ("backend", True, False, True),
]


def experiments(project: Project, now: datetime) -> list[Record]:
    """The latest version of each, newest created first; archived ones have `deleted`."""
    return _listed(project, now, are_experiments=True)


def flags(project: Project, now: datetime) -> list[Record]:
    """As `experiments`; a flag is what has no state, dates and decision."""
    return _listed(project, now, are_experiments=False)


def versions(project: Project, start: datetime, end: datetime) -> list[Record]:
    """All that were saved from `start` on and before `end`, newest first."""
    first = max(start.astimezone(timezone.utc).date(), FIRST_DAY)
    saved = []
    for number in count((first - FIRST_DAY).days):
        moment = _saved_at(number)
        if moment >= end:
            break
        if moment >= start:
            saved.append(_version(project, number))
    return saved[::-1]


def deployments(project: Project, _: datetime) -> list[Record]:
    """With their keys, which are secret."""
    return [
        {
            "id": str(300 + n),
            "projectId": str(project.project_id + is_second),
            "label": label,
            "key": f"{'server' if is_server else 'client'}-{_random_text(project, label, n)}",
            "deleted": is_archived,
        }
        for n, (label, is_server, is_archived, is_second) in enumerate(_DEPLOYMENTS)
    ]


def mutexes(project: Project, _: datetime) -> list[Record]:
    """Groups whose experiments exclude each other."""
    ids = [_flag_id(n) for n, (_, is_experiment, *_) in enumerate(_FLAGS) if is_experiment]
    return [
        {
            "id": str(400 + n),
            "projectId": str(project.project_id + n),
            "name": f"Group {n + 1}",
            "key": f"mutex-{n + 1}",
            "description": None,
            "evaluationMode": "local",
            "bucketingKey": "device_id",
            "bucketingSalt": _random_text(project, "mutex", n)[:8],
            "slots": [
                {
                    "name": f"SLOT {slot}",
                    "index": slot,
                    "variantKey": f"slot-{slot}",
                    "percentage": percentage,
                    "experiments": [ids[n + slot - 1]],
                    "holdouts": ["500"] if slot == 1 else [],
                    "individuals": ["user-1@example.com"] if slot == 2 else [],
                    "cohorts": [],
                }
                for slot, percentage in ((1, 95), (2, 5))
            ],
        }
        for n in range(2)
    ]


def holdouts(project: Project, now: datetime) -> list[Record]:
    """Groups of users who see none of their experiments."""
    first = [_flag_id(n) for n, (_, is_experiment, *_) in enumerate(_FLAGS) if is_experiment]
    return [
        {
            "id": str(500 + n),
            "projectId": str(project.project_id + n),
            "name": f"Holdout {n + 1}",
            "key": f"holdout-{n + 1}",
            "description": "Sees nothing new",
            "holdoutPercentage": 5,
            "evaluationMode": "remote",
            "bucketingKey": "amplitude_id",
            "bucketingSalt": _random_text(project, "holdout", n)[:8],
            "variantName": "on",
            "experiments": first[n : n + 2],
            "individualInclusion": ["user-1@example.com"],
            "individualExclusion": ["user-2@example.com"],
            "deleted": n == 1,
            "createdBy": _PEOPLE[n],
            "lastModifiedBy": _PEOPLE[n],
            "createdAt": _iso(_saved_at(n)),
            "lastModifiedAt": _iso(_saved_at(n + 2)),
        }
        for n in range(2)
        if _saved_at(n + 2) <= now
    ]


def _listed(project: Project, now: datetime, are_experiments: bool) -> list[Record]:
    last = -1
    while _saved_at(last + 1) <= now:
        last += 1
    latest = {n % len(_FLAGS): n for n in range(max(0, last + 1 - len(_FLAGS)), last + 1)}
    return [
        {
            **_version(project, latest[n])["flagConfig"],
            "deleted": _FLAGS[n][2],
            "tags": ["music"] if n % 2 else [],
            **({} if n in _OLD else _history(n, latest[n])),
        }
        for n in sorted(latest, reverse=True)
        if _FLAGS[n][1] is are_experiments
    ]


def _history(n: int, latest: int) -> Record:
    return {
        "createdBy": _PEOPLE[0],
        "lastModifiedBy": _PEOPLE[latest % 2],
        "createdAt": _iso(_saved_at(n)),
        "lastModifiedAt": _iso(_saved_at(latest)),
    }


def _version(project: Project, number: int) -> Record:
    """What was saved on the day `number`."""
    n, age = number % len(_FLAGS), number // len(_FLAGS)
    key, is_experiment, _, is_second, names = _FLAGS[n]
    weights = dict.fromkeys(names, 1) if n != 4 else {}
    config: Record = {
        "id": _flag_id(n),
        "projectId": str(project.project_id + is_second),
        "deployments": ["303"] if is_second else ["300", "301"][: 1 + age],
        "key": key,
        "name": key.replace("-", " ").capitalize(),
        "description": f"Saved {age + 1} times" if n else f"The new player\nSaved {age + 1} times",
        "enabled": age > 0,
        "evaluationMode": "local" if n % 3 == 0 else "remote",
        "bucketingKey": "amplitude_id",
        "bucketingSalt": _random_text(project, key, n)[:8],
        "bucketingUnit": "User",
        "variants": [
            {"key": name, "name": "", "payload": {"colour": name}, "description": ""}
            for name in names
        ],
        "rolloutPercentage": min(100, 10 * age),
        "rolloutWeights": weights,
        "targetSegments": [
            {
                "name": "Segment 1",
                "conditions": [
                    {"prop": "country", "op": "is", "type": "property", "values": ["Germany"]}
                ],
                "percentage": min(100, 25 * age),
                "bucketingKey": "amplitude_id",
                "rolloutWeights": weights,
            }
        ],
        "parentDependencies": {"flags": {_flag_id(0): ["treatment"]}, "operator": "all"}
        if n == 1
        else None,
    }
    if is_experiment:
        states = ["planning", "running", "decision-made"]
        started = FIRST_DAY + n * _DAY + len(_FLAGS) * _DAY
        config.update(
            state=states[min(age, 2)],
            startDate=started.isoformat() if age > 0 else None,
            endDate=_saved_at(number).date().isoformat() if age > 1 else None,
            experimentType="multi-arm-bandit" if len(names) > 2 else "a-b-test",
            stickyBucketing=n == 0,
            decision="rolled-out" if age > 1 else None,
            decisionReason="It plays better" if age > 1 else None,
            rolledOutVariant=names[-1] if age > 1 else None,
        )
    return {
        "createdAt": _iso(_saved_at(number)),
        "createdBy": _PEOPLE[number % 2],
        "version": age + 1,
        "flagConfig": config,
    }


def _flag_id(n: int) -> str:
    return str(21190 + n)


def _saved_at(number: int) -> datetime:
    """A moment of that day, in milliseconds; some are whole seconds, or the last of theirs."""
    seconds, milliseconds = number * 7919 % 86_400, (0, 999, 594)[number % 3]
    midnight = datetime.combine(FIRST_DAY + number * _DAY, datetime.min.time(), timezone.utc)
    return midnight + timedelta(seconds=seconds, milliseconds=milliseconds)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _random_text(project: Project, *parts: Any) -> str:
    return sha256(f"{project.seed} {parts}".encode()).hexdigest()[:32]

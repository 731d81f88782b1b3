"""A command of this environment, in a process whose clock starts at the moment ``AT_MOMENT``.

As Python itself takes them: ``at_moment.py SCRIPT ...``, ``at_moment.py -c CODE ...`` or
``at_moment.py -m MODULE ...``. The commands know nothing of it.
"""

import os
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from unittest.mock import patch

# Classes of theirs that are made of `datetime` have to be made of the real one.
import airbyte_cdk.entrypoint
import airbyte_cdk.sources.declarative.concurrent_declarative_source  # noqa: F401
import freezegun


@contextmanager
def clock_from(moment: datetime) -> Iterator[None]:
    """The date and the time go on from a moment; what measures, and what waits, is left alone."""
    with ExitStack() as stack:
        for name in ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"):
            stack.enter_context(patch.object(freezegun.api, f"fake_{name}", getattr(time, name)))
        stack.enter_context(freezegun.freeze_time(moment, tick=True))
        yield


def main(args: list[str]) -> None:
    match args:
        case ["-c", code, *arguments]:
            sys.argv, sys.path[0] = ["-c", *arguments], ""
            exec(code, {"__name__": "__main__"})
        case ["-m", module, *arguments]:
            sys.argv, sys.path[0] = [module, *arguments], ""
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *_]:
            sys.argv, sys.path[0] = args, os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    with clock_from(datetime.fromisoformat(os.environ["AT_MOMENT"])):
        main(sys.argv[1:])

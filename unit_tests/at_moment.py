"""A command of this environment, in a process whose clock starts at the moment ``AT_MOMENT``.

As Python itself takes them: ``at_moment.py SCRIPT ...``, ``at_moment.py -c CODE ...`` or
``at_moment.py -m MODULE ...``. The commands know nothing of it.
"""

import os
import runpy
import sys

# Classes of theirs that are made of `datetime` have to be made of the real one.
import airbyte_cdk.entrypoint
import airbyte_cdk.sources.declarative.concurrent_declarative_source  # noqa: F401
import freezegun

if __name__ == "__main__":
    freezegun.freeze_time(os.environ["AT_MOMENT"], tick=True, real_asyncio=True).start()
    match sys.argv[1:]:
        case ["-c", code, *arguments]:
            sys.argv, sys.path[0] = ["-c", *arguments], ""
            exec(code)
        case ["-m", module, *arguments]:
            sys.argv, sys.path[0] = [module, *arguments], ""
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *_]:
            sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")

"""Runs the sandbox until Ctrl-C or SIGTERM: `python -m sandbox [--port N]`."""

import argparse
import shlex
import signal
import threading

from sandbox import Project, Sandbox


def main() -> None:
    """Serve one project per region and print what a client needs to reach each."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument(
        "--port", type=int, default=0, help="proxy port; the EU region takes the next one"
    )
    port: int = parser.parse_args().port
    # As Ctrl-C: whoever ends it, the folder of its certificates goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            Sandbox(Project(), port=port) as standard,
            Sandbox(Project(), eu=True, port=port and port + 1) as eu,
        ):
            for sandbox in (standard, eu):
                print(f"# {sandbox.config()['data_region']}")
                for name in ("HTTPS_PROXY", "REQUESTS_CA_BUNDLE"):
                    print(f"export {name}={shlex.quote(sandbox.env[name])}")
                print(
                    f"# api_key: {sandbox.api_key}\n# secret_key: {sandbox.secret_key}\n"
                    f"# management_api_key: {sandbox.management_key}",
                    flush=True,
                )
            threading.Event().wait()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()

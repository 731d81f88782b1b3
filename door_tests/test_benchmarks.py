"""A smoke run of every scenario of the benchmark: that it works, never how fast."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

_ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="memory and disk are read from /proc")
def test_given_next_to_nothing_when_the_benchmark_runs_then_every_scenario_reports(
    tmp_path: Path,
) -> None:
    # The harness itself fails when a program delivers less or more events than there are.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--report", str(tmp_path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    report = (tmp_path / "README.md").read_text(encoding="utf-8")
    for figure in (
        "speed / published recipe",
        "speed / stock decoders only",
        "speed / floor",
        "two processes",
        "files / curl",
        "peak resident memory, as a file",
        "peak resident memory",
        "without isal",
        "with an output that pauses",
        "CPU per event",
        "the read completes",
        "temporary space",
        "time per event",
        "`spec`",
        "`check`",
        "Where the time goes",
    ):
        assert figure in report
    for picture in ("events-per-second.png", "pause.png", "memory.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")

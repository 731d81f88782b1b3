"""One process, measured from outside: time, records, resident memory, temporary files."""

import fcntl
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = b'{"type":"RECORD"'
_PIPE_BYTES = 1024 * 1024
_PAUSE = 0.1  # seconds between two looks at a process


class MeasureError(Exception):
    """A measured process did not do what it was to do."""


@dataclass(frozen=True)
class Sample:
    """What a process held at a moment: seconds since its start, bytes."""

    seconds: float
    resident: int
    temporary: int


@dataclass
class Run:
    """A finished process.

    Args:
        seconds: from start to exit.
        cpu_seconds: of user and system, on all cores.
        records: RECORD messages printed.
        first_record: seconds from start to the first of them.
        peak_resident: the kernel's high-water mark of the process (VmHWM), in bytes.
        samples: one look every tenth of a second.
        visible: names of files seen in its TMPDIR, during or after the run.
        is_stopped: whether `stop_when` ended it.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    records: int = 0
    first_record: float = 0.0
    peak_resident: int = 0
    samples: list[Sample] = field(default_factory=list)
    visible: set[str] = field(default_factory=set)
    is_stopped: bool = False

    @property
    def peak_temporary(self) -> int:
        """The most bytes held at once in files of TMPDIR that no longer have a name."""
        return max((sample.temporary for sample in self.samples), default=0)


def measure(
    command: Sequence[str],
    env: Mapping[str, str],
    stop_when: Callable[[Sample], bool] = lambda _: False,
    pause: float = 0.0,
) -> Run:
    """Run `command` to its end, or until `stop_when` holds and it is killed (SIGKILL).

    Its output goes through a pipe that is drained and counted, but for a pause of `pause` seconds
    after the first record; TMPDIR is an empty folder.

    Raises:
        MeasureError: it failed; the message has the end of what it said.
    """
    run = Run()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **env, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout
        tail: list[bytes] = []
        drain = threading.Thread(
            target=_drain, args=(process.stdout.fileno(), run, tail, pause, started)
        )
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_PAUSE):
                sample = _look(process.pid, folder, run, time.monotonic() - started)
                if sample and stop_when(sample) and not run.is_stopped:
                    run.is_stopped = True
                    process.kill()

        watcher = threading.Thread(target=watch)
        drain.start()
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            run.cpu_seconds = usage.ru_utime + usage.ru_stime
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            run.seconds = time.monotonic() - started
            ended.set()
            watcher.join()
            drain.join()
            process.stdout.close()
        run.visible.update(_files(folder))
        if process.returncode and not run.is_stopped:
            errors.seek(0)
            said = (b"".join(tail) + errors.read())[-3000:].decode(errors="replace")
            raise MeasureError(f"{command[0]} ended with {process.returncode}:\n{said}")
    return run


def _drain(pipe: int, run: Run, tail: list[bytes], pause: float, started: float) -> None:
    """Count what is printed and keep the end of it in `tail`."""
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    rest = b""
    while chunk := os.read(pipe, _PIPE_BYTES):
        chunk = rest + chunk
        run.records += chunk.count(_RECORD)
        # Shorter than what is counted, so that nothing counts twice.
        rest = chunk[1 - len(_RECORD) :]
        tail[:] = [chunk]
        if run.records and not run.first_record:
            run.first_record = time.monotonic() - started
            time.sleep(pause)


def _files(folder: str) -> list[str]:
    """All files under a folder. Folders do not count: the CDK makes an empty one for itself."""
    return [name for _, _, names in os.walk(folder) for name in names]


def _look(pid: int, folder: str, run: Run, seconds: float) -> Sample | None:
    """Add a sample of a process to `run`; None when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        temporary = 0
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(entry.path)
                if target.startswith(folder) and target.endswith("(deleted)"):
                    temporary += entry.stat().st_size
            except FileNotFoundError:
                pass  # closed meanwhile
    except (FileNotFoundError, ProcessLookupError):
        return None
    sizes = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", status, re.MULTILINE))
    if not sizes:
        return None  # a process that has ended and is not waited for has no memory
    sample = Sample(seconds, int(sizes["VmRSS"]) * 1024, temporary)
    run.samples.append(sample)
    run.peak_resident = max(run.peak_resident, int(sizes["VmHWM"]) * 1024)
    run.visible.update(_files(folder))
    return sample

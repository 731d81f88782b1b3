"""What is measured. Programs take turns (A B C A B C ...), so that a slow minute hits them all."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median

import yaml

from benchmarks import readers
from benchmarks.archives import LargeProject, Server, StoredProject, serve
from benchmarks.measure import MeasureError, Run, Sample, measure
from benchmarks.readers import Reader, Span
from benchmarks.report import Report

Rates = dict[str, list[float]]  # by program, a figure a round

_GIB = 2**30
_MIB = 2**20
_MEMORY_CEILING = 6 * _GIB
_MANIFEST = Path(__file__).parents[1] / "source_amplitude" / "manifest.yaml"


@dataclass(frozen=True)
class Plan:
    """How much is read, and how often.

    Args:
        runs: rounds of every comparison.
        takes_off_start_up: whether events per second leave out what a process takes to start.
        single: a project of one event.
        recipe_hours: the hours of `speed` that the published recipe reads.
        memory: projects by the size of their archive, in words.
        paused: projects by the size of their events, in words, read with a pause of the output.
        pause: its length in seconds.
        files: projects by the size of their archives, in words, whose hours are read as files.
        large_file: a project of one archive.
    """

    runs: int
    takes_off_start_up: bool
    single: StoredProject
    speed: StoredProject
    recipe_hours: int
    growth: tuple[StoredProject, StoredProject]
    memory: dict[str, StoredProject]
    huge_events: StoredProject
    paused: dict[str, StoredProject]
    pause: float
    files: dict[str, StoredProject]
    large_file: StoredProject

    @classmethod
    def full(cls, directory: Path, day: datetime, runs: int) -> "Plan":
        """The real thing: about half an hour on two cores."""
        # In hours of four equal files, as readers.prebuilt wants them.
        base = StoredProject(directory=directory, first_hour=day, events_per_hour=2_084)
        # 8 KiB make 6.4 KB of archive per event.
        heavy = replace(base, payload_bytes=8 * 1024)
        huge = replace(heavy, events_per_hour=12_880)
        return cls(
            runs,
            takes_off_start_up=True,
            single=replace(base, hours=1, events_per_hour=1),
            speed=replace(base, hours=96),
            # Far slower than the others: half of the days will do.
            recipe_hours=48,
            growth=(base, replace(base, events_per_hour=83_333)),
            memory={
                "50 MB": replace(heavy, events_per_hour=322),
                "500 MB": replace(heavy, events_per_hour=3_220),
                "2 GB": huge,
            },
            huge_events=replace(base, events_per_hour=50, payload_bytes=512 * 1024),
            # Half a gigabyte of events each.
            paused={
                f"{size:g} KB": replace(
                    base,
                    events_per_hour=int(20_000 / size),
                    payload_bytes=int((size - 2) * 1000),
                )
                for size in (2.5, 20, 100, 500)
            },
            pause=25.0,
            files={"large": huge, "small": replace(base, hours=96)},
            large_file=LargeProject(directory=directory, first_hour=day, hours=1, parts=125),
        )

    @classmethod
    def quick(cls, directory: Path, day: datetime) -> "Plan":
        """Every program once over next to nothing: shows that the benchmark works."""
        base = StoredProject(directory=directory, first_hour=day, events_per_hour=20)
        return cls(
            1,
            takes_off_start_up=False,  # it would double the time
            single=replace(base, hours=1, events_per_hour=1),
            speed=replace(base, hours=48),
            recipe_hours=24,
            growth=(base, replace(base, events_per_hour=40)),
            memory={"1 MB": replace(base, payload_bytes=4096)},
            huge_events=replace(base, events_per_hour=1, payload_bytes=512 * 1024),
            # More than a pipe holds, so that the reader has to wait.
            paused={"20 KB": replace(base, payload_bytes=18_000)},
            pause=0.5,
            files={"large": replace(base, payload_bytes=4096)},
            large_file=LargeProject(directory=directory, first_hour=day, hours=1),
        )

    @property
    def projects(self) -> list[StoredProject]:
        by_size = [*self.memory.values(), *self.paused.values(), *self.files.values()]
        return list(
            # Some are there twice, and must not be written at the same time.
            dict.fromkeys(
                [self.single, self.speed, *self.growth, *by_size, self.huge_events, self.large_file]
            )
        )


class Bench:
    """What all scenarios share.

    Args:
        work: an empty folder.
        published: the published package, or why it is not there.
    """

    def __init__(
        self, plan: Plan, report: Report, work: Path, published: Reader | readers.NotInstalledError
    ) -> None:
        self.plan, self.report, self.published = plan, report, published
        self._work = work
        self.recipe, self.stock, self.prebuilt, self.without_isal = (
            make(work)
            for make in (readers.recipe, readers.stock, readers.prebuilt, readers.without_isal)
        )

    def read(
        self,
        reader: Reader,
        server: Server,
        span: Span,
        stop_when: Callable[[Sample], bool] = lambda _: False,
        wrapper: Sequence[str] = (),
        pause: float = 0.0,
    ) -> Run:
        """Let `reader` read `span`, and see that all events of it were delivered.

        Raises:
            MeasureError: it failed, or delivered less or more.
        """
        config = self._write(span.config(server))
        options = ("--config", config, "--catalog", self._write(reader.catalog), *reader.options)
        command = (*wrapper, *reader.program, "read", *options)
        hours = server.project.all_hours[span.skip : span.skip + span.hours]
        expected = sum(map(server.project.event_count, hours))
        if reader is readers.FILES:
            expected = sum(len(server.project.member_names(hour)) for hour in hours)
        with tempfile.TemporaryDirectory(dir=self._work) as staging:
            env = {**server.env, **reader.env, "AIRBYTE_STAGING_DIRECTORY": staging}
            run = measure(command, env, stop_when, pause)
            if reader.stages:
                staged = [f.stat().st_size for f in Path(staging).rglob("*") if f.is_file()]
                # Served archives are a little longer than stored ones, members a little shorter.
                size = server.project.archive_bytes(hours)
                count = expected if reader.prints else len(hours)
                if len(staged) != count or abs(sum(staged) - size) > size * 0.01 + 10_000:
                    raise MeasureError(
                        f"{reader.name} left {len(staged)} files of {sum(staged):,} B."
                    )
        if reader.prints and not run.is_stopped and run.records != expected:
            raise MeasureError(f"{reader.name} delivered {run.records:,} of {expected:,} records.")
        return run

    def run(self, server: Server, command: str) -> float:
        """Seconds that a command of ours other than `read` takes."""
        options = [] if command == "spec" else ["--config", self._write(Span(1).config(server))]
        return measure([*readers.OURS.program, command, *options], server.env).seconds

    def _write(self, content: object) -> str:
        text = json.dumps(content)
        file = self._work / f"{hash(text):x}.json"
        file.write_text(text)
        return str(file)


@dataclass(frozen=True)
class Contender:
    """A program and the spans of a project that it reads at the same time, in a process each."""

    name: str
    reader: Reader
    project: StoredProject
    spans: tuple[Span, ...]

    def run(self, bench: Bench, server: Server) -> "Took":
        """What it takes when `server` is asked."""
        with ThreadPoolExecutor(len(self.spans)) as pool:
            jobs = [pool.submit(bench.read, self.reader, server, span) for span in self.spans]
            runs = [job.result() for job in jobs]
        return Took(max(run.seconds for run in runs), sum(run.cpu_seconds for run in runs))


@dataclass(frozen=True)
class Took:
    """Seconds from start to exit, and those of all cores."""

    seconds: float
    cpu: float


def race(bench: Bench, contenders: Sequence[Contender], rounds: int) -> tuple[Rates, Rates]:
    """Events per second, and CPU seconds per million events, of every contender.

    What the same command takes for a project of one event is its start-up, and is taken off.
    """
    idle: dict[str, list[Took]] = {c.name: [] for c in contenders}
    busy: dict[str, list[Took]] = {c.name: [] for c in contenders}
    with ExitStack() as stack:
        single = stack.enter_context(serve(bench.plan.single))
        servers = {p: stack.enter_context(serve(p)) for p in {c.project for c in contenders}}
        for _ in range(rounds):
            for contender in contenders:
                if bench.plan.takes_off_start_up:
                    idle[contender.name].append(contender.run(bench, single))
                busy[contender.name].append(contender.run(bench, servers[contender.project]))
    rates: Rates = {}
    cpu: Rates = {}
    for contender in contenders:
        name = contender.name
        events = contender.project.events_per_hour * sum(span.hours for span in contender.spans)
        start_up = Took(
            median([took.seconds for took in idle[name]] or [0.0]),
            median([took.cpu for took in idle[name]] or [0.0]),
        )
        rates[name] = [events / (took.seconds - start_up.seconds) for took in busy[name]]
        cpu[name] = [(took.cpu - start_up.cpu) / events * 1e6 for took in busy[name]]
    return rates, cpu


def _ratios(rates: Rates, name: str, other: str) -> list[float]:
    return [ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True)]


def speed(bench: Bench) -> None:
    """Several days in windows of a day, the published default, and where the time goes."""
    project = bench.plan.speed
    days = Span(project.hours)
    half = Span(days.hours // 2)
    steps = [
        Contender(reader.name, reader, project, (days,))
        for reader in (bench.without_isal, bench.prebuilt, readers.INFLATE, readers.PARSE)
    ]
    two = Contender(
        f"{readers.OURS.name}, 2 processes",
        readers.OURS,
        project,
        (half, replace(half, skip=half.hours)),
    )
    rates, cpu = _compare(bench, days, [*steps, two], bench.published)
    bench.report.no_target(
        f"speed / {readers.FLOOR.name}, without isal",
        _describe(project, 24),
        _ratios(rates, bench.without_isal.name, readers.FLOOR.name),
    )
    bench.report.at_least(
        "two processes with half of the days each / one process",
        _describe(project, 24),
        1.7,
        _ratios(rates, two.name, readers.OURS.name),
    )
    bench.report.paragraphs.append(_breakdown(bench, rates))
    for reader in (readers.INFLATE, readers.PARSE):
        del rates[reader.name], cpu[reader.name]


def hourly(bench: Bench) -> None:
    """The same days in windows of an hour: many small archives."""
    _compare(bench, Span(bench.plan.speed.hours, window=1), [])


def _compare(
    bench: Bench,
    span: Span,
    more: Sequence[Contender],
    published: Reader | readers.NotInstalledError | None = None,
) -> tuple[Rates, Rates]:
    """Race ours against the baselines, and report the ratios; what `race` found."""
    report, project, ours = bench.report, bench.plan.speed, readers.OURS.name
    targets = [(bench.recipe, 14.0), (bench.stock, 1.5), (readers.FLOOR, 0.8)]
    if isinstance(published, Reader):
        targets.insert(2, (published, 5.0))
    elif published:
        report.missing(f"speed / {readers.PACKAGE}", str(published))
    spans = {bench.recipe.name: replace(span, hours=bench.plan.recipe_hours)}
    contenders = [
        Contender(reader.name, reader, project, (spans.get(reader.name, span),))
        for reader in (readers.OURS, *(reader for reader, _ in targets))
    ]
    rates, cpu = race(bench, [*contenders, *more], bench.plan.runs)
    for reader, target in targets:
        ratios = _ratios(rates, ours, reader.name)
        report.at_least(f"speed / {reader.name}", _describe(project, span.window), target, ratios)
    name, ratios = "CPU per event / floor (no CDK)", _ratios(cpu, ours, readers.FLOOR.name)
    if span.window == 24:
        report.at_most(name, _describe(project, span.window), 1.3, ratios)
    else:  # the checks of many small archives, which the floor does without
        report.no_target(name, _describe(project, span.window), ratios)
    report.rates[span.window], report.cpu[span.window] = rates, cpu
    return rates, cpu


def _describe(project: StoredProject, window: int) -> str:
    return f"{project.hours // 24} days of {24 * project.events_per_hour:,} events, {window} h each"


def _breakdown(bench: Bench, rates: Rates) -> str:
    """Where an event's time goes, from what the parts take by themselves."""
    names = (readers.OURS, readers.INFLATE, readers.PARSE, readers.FLOOR, bench.prebuilt)
    ours, inflate, parse, floor, cdk = (1e6 / median(rates[reader.name]) for reader in names)
    return (
        f"Where the time goes: an event takes {ours:.1f} µs in source-amplitude and {floor:.1f} µs "
        f"in the floor. By themselves, downloading and inflating take {inflate:.1f} µs of that "
        f"floor, parsing JSON {parse - inflate:.1f} µs, and writing the record {floor - parse:.1f} "
        f"µs. The CDK takes {cdk:.1f} µs for a record that costs nothing to make, writing "
        f"included, which is {floor / cdk:.2f} of the floor's speed: it wraps it, hands it over to "
        "the printing thread, observes its cursor value, turns it into a message and serialises "
        "that. source-amplitude has the thread that parses an event make its line at once, and "
        "some 128 KB of lines, about fifty ordinary events, pass through the CDK as one record."
    )


def growth(bench: Bench) -> None:
    """The time per event for a day of few and of many events, one archive each."""
    few, many = (
        Contender(f"{project.total:,} events", readers.OURS, project, (Span(24),))
        for project in bench.plan.growth
    )
    rates, _ = race(bench, [few, many], bench.plan.runs)
    bench.report.at_most(
        f"time per event, {many.name} / {few.name}",
        "one day in one archive",
        1.1,
        _ratios(rates, few.name, many.name),
    )


def memory(bench: Bench) -> None:
    """Peaks for a day's archive of different sizes, for huge events, and under a limit."""
    report, plan, day = bench.report, bench.plan, Span(24)
    rounds = min(plan.runs, 3)
    others = [bench.recipe, *([bench.published] if isinstance(bench.published, Reader) else [])]
    peaks = []
    for size, project in plan.memory.items():
        with serve(project) as server:
            runs = [bench.read(readers.OURS, server, day) for _ in range(rounds)]
            report.memory[size] = {readers.OURS.name: runs[0]} | {
                reader.name: bench.read(reader, server, day, _is_too_large) for reader in others
            }
        peaks.append([run.peak_resident / _MIB for run in runs])
        archive = _archive(project)
        report.at_most("peak resident memory", archive, 200, peaks[-1], " MiB")
    report.at_most(
        "peak resident memory, highest / lowest of these",
        ", ".join(plan.memory),
        1.15,
        [max(peaks_of_round) / min(peaks_of_round) for peaks_of_round in zip(*peaks, strict=True)],
    )
    with serve(plan.huge_events) as server:
        runs = [bench.read(readers.OURS, server, day) for _ in range(rounds)]
    huge = [run.peak_resident / _MIB for run in runs]
    report.at_most("peak resident memory", _archive(plan.huge_events), 200, huge, " MiB")
    with serve(project) as server:
        limit, wrapper = _limit()
        try:
            bench.read(readers.OURS, server, day, wrapper=wrapper)
            holds, outcome = True, f"it does, under {limit}"
        except MeasureError as error:
            holds, outcome = False, f"it fails, under {limit}: {str(error)[:200]}"
    report.fact("a limit of 512 MiB", archive, "the read completes", outcome, holds)


def pause(bench: Bench) -> None:
    """Peaks while the output is not read for a while, for events of different sizes."""
    plan = bench.plan
    bench.report.pause = plan.pause
    for size, project in plan.paused.items():
        with serve(project) as server:
            span = Span(project.hours)
            runs = [
                bench.read(readers.OURS, server, span, pause=plan.pause)
                for _ in range(min(plan.runs, 3))
            ]
        if min(run.seconds - run.first_record for run in runs) < plan.pause:
            raise MeasureError(f"The read of events of {size} ended before its output paused.")
        bench.report.paused[size] = runs[0]
        bench.report.at_most(
            "peak resident memory, with an output that pauses",
            f"{project.total:,} events of {size}, {plan.pause:g} s",
            250 if float(size.split()[0]) >= 100 else 200,
            [run.peak_resident / _MIB for run in runs],
            " MiB",
        )


def _is_too_large(sample: Sample) -> bool:
    return sample.resident > _MEMORY_CEILING


def _limit() -> tuple[str, tuple[str, ...]]:
    """How to run a command within 512 MiB on this machine: in words, and what goes before it."""
    scope = ("systemd-run", "--scope", "--quiet", "-p", "MemoryMax=512M", "-p", "MemorySwapMax=0")
    if (
        shutil.which(scope[0])
        and not subprocess.run([*scope, "true"], capture_output=True).returncode
    ):
        return "systemd-run -p MemoryMax=512M", scope
    kibibytes = 512 * 1024
    # Stricter than resident memory: address space includes what is only reserved.
    return f"ulimit -v {kibibytes}", ("sh", "-c", f'ulimit -v {kibibytes}; exec "$@"', "sh")


def _archive(project: StoredProject) -> str:
    size, payload = project.stored_bytes / 1e6, project.payload_bytes // 1024
    return f"one of {size:,.0f} MB, {project.total:,} events of {payload} KiB and more"


def files(bench: Bench) -> None:
    """Archives as files, beside curl that gets the same ones; and the memory of a large one."""
    report, plan = bench.report, bench.plan
    ours, curl = readers.FILES, readers.CURL
    speeds = []
    for size, project in plan.files.items():
        taken: dict[str, list[Took]] = {ours.name: [], curl.name: []}
        idle: dict[str, list[Took]] = {ours.name: [], curl.name: []}
        with serve(plan.single) as single, serve(project) as server:
            for _ in range(plan.runs):
                for reader in (ours, curl):
                    if plan.takes_off_start_up:
                        run = bench.read(reader, single, Span(1))
                        idle[reader.name].append(Took(run.seconds, run.cpu_seconds))
                    run = bench.read(reader, server, Span(project.hours))
                    taken[reader.name].append(Took(run.seconds, run.cpu_seconds))
        rates: Rates = {}
        cpu: Rates = {}
        megabytes = project.stored_bytes / 1e6
        for name, rounds in taken.items():
            start_up = median([took.seconds for took in idle[name]] or [0.0])
            start_up_cpu = median([took.cpu for took in idle[name]] or [0.0])
            rates[name] = [megabytes / (took.seconds - start_up) for took in rounds]
            cpu[name] = [(took.cpu - start_up_cpu) / megabytes * 1000 for took in rounds]
        archives = f"{project.hours} of {megabytes / project.hours:,.1f} MB"
        ratios = _ratios(rates, ours.name, curl.name)
        if size == "large":
            report.at_least("bytes per second, files / curl", archives, 0.7, ratios)
        else:  # an answer comes sooner than the CDK gets to the next hour
            report.no_target("bytes per second, files / curl", archives, ratios)
        ours_speed, curl_speed = median(rates[ours.name]), median(rates[curl.name])
        ours_cpu, curl_cpu = median(cpu[ours.name]), median(cpu[curl.name])
        speeds.append(
            f"{archives}: {ours_speed:,.0f} MB/s and {ours_cpu:.2f} s of CPU per GB, curl "
            f"{curl_speed:,.0f} MB/s and {curl_cpu:.2f} s"
        )
    report.paragraphs.append(f"As files, {'; '.join(speeds)}. The sandbox sends no faster.")
    with serve(plan.large_file) as server:
        runs = [bench.read(ours, server, Span(1)) for _ in range(min(plan.runs, 3))]
    archive = f"one of {plan.large_file.stored_bytes / 1e6:,.0f} MB"
    peaks = [run.peak_resident / _MIB for run in runs]
    report.at_most("peak resident memory, as a file", archive, 200, peaks, " MiB")


def disk(bench: Bench) -> None:
    """Temporary files: how much at most, whether anyone sees them, and what a crash leaves."""
    project = list(bench.plan.memory.values())[-2:][0]
    window = 6
    hours = project.all_hours
    largest = max(
        project.archive_bytes(hours[n : n + window]) for n in range(0, len(hours), window)
    )
    workers = yaml.safe_load(_MANIFEST.read_text())["spec"]["connection_specification"][
        "properties"
    ]["num_workers"]["default"]
    archives = f"{len(hours) // window} of {largest / 1e6:,.0f} MB, {workers} in flight"
    with serve(project) as server:
        span = Span(24, window)
        whole = [bench.read(readers.OURS, server, span) for _ in range(min(bench.plan.runs, 3))]
        killed = bench.read(
            readers.OURS, server, span, lambda sample: sample.temporary > largest / 2
        )
    bench.report.at_most(
        "temporary space, in sizes of an archive",
        archives,
        # Served archives are a little longer than stored ones: a data descriptor per member.
        round(workers * 1.01, 2),
        [run.peak_temporary / largest for run in whole],
    )
    visible = killed.visible.union(*(run.visible for run in whole))
    how = "killed half-way" if killed.is_stopped else "finished too soon to be killed"
    bench.report.fact(
        "files seen in TMPDIR, and left there after SIGKILL",
        archives,
        "none",
        f"{', '.join(sorted(visible)) or 'none'} ({how})",
        not visible and killed.is_stopped,
    )


def start(bench: Bench) -> None:
    """`spec` and `check` beside a process that only gets the CDK ready."""
    bare: list[float] = []
    seconds: dict[str, list[float]] = {"spec": [], "check": []}
    with serve(bench.plan.single) as server:
        for _ in range(bench.plan.runs):
            bare.append(measure([sys.executable, "-m", "benchmarks.bare_cdk"], {}).seconds)
            for command, values in seconds.items():
                values.append(bench.run(server, command))
    for command, values in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, bare, strict=True)]
        bench.report.at_most(f"`{command}` / the CDK's bare start-up", "", 1.5, ratios)


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    scenario.__name__: scenario
    for scenario in (speed, hourly, files, pause, memory, growth, disk, start)
}

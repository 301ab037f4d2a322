"""Runs groups of cases, and collects rows and omissions."""

import itertools
import sys
from dataclasses import dataclass, replace

from benchmarks.cases import fits_memory, refusal
from benchmarks.environment import environment
from benchmarks.peers import BestCopier, prepared
from benchmarks.results import FORMAT, Row
from benchmarks.shared_libraries import handover_nanoseconds
from bnext.bench.measure import measure

# Threads hand over within some 200 ns on any two cores. After thousands, one thread had no core,
# since the system, or the machine below it, gave the core away: the case is measured again.
TAKEN_AWAY = 2000
TRIES = 3


@dataclass(frozen=True)
class Choice:
    """The part of the passes that the command line selects; None selects all."""

    threads: tuple | None = None
    dtypes: tuple | None = None
    operations: tuple | None = None
    peers: tuple | None = None
    pages: tuple | None = None
    seconds: float | None = None

    def of_pass(self, one):
        """The selected part of a pass; threads of the command line replace its own."""
        return replace(
            one,
            dtypes=_left(one.dtypes, self.dtypes),
            threads=one.threads if self.threads is None else self.threads,
            pages=_left(one.pages, self.pages),
            peers=_left(one.peers, self.peers),
            seconds=one.seconds if self.seconds is None else self.seconds,
        )


def _left(all_of_them, wanted):
    return tuple(x for x in all_of_them if wanted is None or x in wanted)


@dataclass
class Notes:
    """Notes beside the rows."""

    skipped: list
    layouts: list


def run_group(group, choice):
    """Measure one group in this process; return its document."""
    rows, notes = [], Notes([], [])
    operations = _left(group.operations, choice.operations)
    for terms, one in planned(group, choice).items():
        pages, dtype, threads = terms
        if reason := refusal(dtype):
            _note(notes.skipped, dtype=dtype, reason=f"bnext: {reason}")
        elif operations:
            rows += _run_pass(group, one, operations, pages, dtype, threads, notes)
    _progress("")
    return FORMAT.document(
        environment(sorted({row.threads for row in rows} or {1})),
        rows=[row.as_dict() for row in rows],
        skipped=[{"group": group.name, **item} for item in notes.skipped],
        layouts=[{"group": group.name, **item} for item in notes.layouts],
        groups=[{"name": group.name, "title": group.title}],
    )


def planned(group, choice):
    """The pass for each (pages, dtype, threads), in the order of measuring.

    Fresh pages come before warm ones, which change the allocator (`bnext.bench.heap`). Of several
    passes with the same terms the first one counts.
    """
    passes = [choice.of_pass(one) for one in group.passes]
    found = {}
    for pages in ("fresh", "warm"):
        for one in passes:
            if pages in one.pages:
                for dtype, threads in itertools.product(one.dtypes, one.threads):
                    found.setdefault((pages, dtype, threads), one)
    return found


def _run_pass(group, one, operations, pages, dtype, threads, notes):
    chosen = []
    libraries = {
        name: prepared(name, operations, notes.skipped, chosen) for name in ("bnext", *one.peers)
    }
    rows = []
    for case in (replace(case, dtype=dtype) for case in group.cases):
        if not fits_memory(case):
            _note(notes.skipped, case=case.name, dtype=dtype, reason="not enough memory")
            continue
        layouts = len(chosen)
        for _ in range(TRIES):
            del chosen[layouts:]
            found = _measured(group.name, case, libraries, one, operations, pages, threads)
            if not any(row.handover_ns and row.handover_ns > TAKEN_AWAY for row in found):
                break
        rows += found
        _progress(f"{group.name}, {pages}, {dtype}, {threads} threads: {case.name}")
    notes.layouts += [{**item, "pages": pages, "threads": threads} for item in chosen]
    return rows


def _measured(group, case, libraries, one, operations, pages, threads):
    """The rows of one case, each with the distance of the threads right after it."""
    measurements = measure(
        [case],
        pages=pages,
        libraries=libraries,
        threads=threads,
        seconds=one.seconds,
        operations=operations,
        copier=BestCopier,
    )
    return [
        Row(group, threads, measurement, handover_nanoseconds() if threads > 1 else None)
        for measurement in measurements
    ]


def _note(skipped, **item):
    if item not in skipped:
        skipped.append(item)


def _progress(text):
    if sys.stderr.isatty():
        print(f"\r{text:78}", end="" if text else "\r", file=sys.stderr, flush=True)

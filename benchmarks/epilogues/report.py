"""The tables, in plain text, and the verdicts on the promises."""

import math

from benchmarks import peers
from benchmarks.environment import environment
from benchmarks.epilogues.cases import COSTS, FUSED, LAYOUTS, NONE, SUMS, is_beyond_caches
from benchmarks.epilogues.measure import PEERS
from benchmarks.kit.documents import label_of
from benchmarks.kit.promises import Verdict
from benchmarks.kit.tables import NO_VALUE, plain, versions_of


def sums_of(rows):
    """Sums over all layers, by dtype, layout, operation and pages: seconds of each library."""
    found = {}
    for row in rows:
        terms = row.case.dtype, LAYOUTS[row.case.channels_last], row.operation, row.pages
        total = found.setdefault(terms, dict.fromkeys(row.seconds, 0.0))
        for name, seconds in row.seconds.items():
            total[name] += row.layers * seconds
    return found


def worst(text, rows, figure, *, least=0.0, most=math.inf):
    """The verdict on the worst of the rows; not measured without any."""
    figures = [(figure(row), label_of(row.case)) for row in rows]
    found = (max if most < math.inf else min)(figures, default=(None, ""))
    return Verdict(text, least, *found, most=most)


def judged(rows):
    """The rows that promises on large arrays are of."""
    return [row for row in rows if row.case.dtype == "float32" and is_beyond_caches(row.case)]


def verdicts(costs, rows, fused):
    """Every promise with its figure; `rows` are the network's."""
    sums = sums_of(rows)
    costs, fused = judged(costs), judged(fused)
    for operation, promised in COSTS.items():
        of_operation = [row for row in costs if row.operation == operation]
        for epilogue, most in promised.items():
            if most is not None:
                text = f"{operation} with {epilogue.name}, over {operation} without"
                yield worst(
                    text, of_operation, lambda row, e=epilogue: row.ratio(e, NONE), most=most
                )
    for (dtype, layout), promised in SUMS.items():
        for operation, least in promised.items():
            total = sums.get((dtype, layout, operation, "warm"))
            figure = total["torch"] / total["bnext"] if total else None
            text = f"{dtype}, {layout}, ResNet-50's layers with what follows them: {operation}"
            yield Verdict(f"{text}, against PyTorch", least, figure)
    for name, promised in FUSED.items():
        for operation, least in promised.items():
            found = [row for row in fused if row.operation == operation and name in row.seconds]
            text = f"float32, planar: {operation}, against the fused code of {peers.TITLES[name]}"
            yield worst(text, found, lambda row, name=name: row.ratio(name, "bnext"), least=least)


def introduction(threads):
    """The machine, the versions and the threads."""
    e = environment([threads])
    cache = max(e["caches"].values(), default=0)
    return (
        f"Epilogues: {e['date']}, commit {e['commit']}, build {e['build']}\n"
        f"{e['processor']}, {e['processors']} processors; {threads} threads for every library\n"
        f"{versions_of(e)}; instruction set {e['isa']}\n"
        f"{', '.join(e['openmp_runtimes']) or 'no OpenMP'}; huge pages: {e['huge_pages']}\n"
        f"Promises on large arrays are judged in float32 where x exceeds the last-level cache, of "
        f"{cache / 1e6:.1f} MB"
    )


def _titled(title, header, lines, keys):
    """A table below its title, with columns on the left that name a row."""
    return f"\n{title}\n{plain([header, *lines], range(keys))}\n"


def _milliseconds(seconds):
    return f"{seconds * 1e3:.3f}"


def costs_table(rows):
    columns = list(dict.fromkeys(e for promised in COSTS.values() for e in promised))
    lines = [
        (
            *(label_of(row.case), row.operation, _milliseconds(row.seconds[NONE])),
            *(f"{row.ratio(e, NONE):.3f}" if e in row.seconds else NO_VALUE for e in columns),
        )
        for row in rows
    ]
    header = ("case", "operation", "plain ms", *(e.name for e in columns))
    title = "Time with an epilogue over the time without, out= given, warm pages"
    return _titled(title, header, lines, 2)


def sums_table(rows):
    lines = [
        (
            *terms,
            f"{total['torch'] / total['bnext']:.2f}",
            *(_milliseconds(total[name]) for name in ("bnext", "torch")),
        )
        for terms, total in sums_of(rows).items()
    ]
    header = ("dtype", "layout", "operation", "pages", "x PyTorch", "bnext ms", "PyTorch ms")
    title = "The 53 layers of ResNet-50 at batch 32 with what follows them: sums of times"
    return _titled(title, header, lines, 4)


def layers_table(rows):
    return _compared("The layers, kind by kind: times, and how often the network has them", rows)


def fused_table(rows):
    return _compared("Beside the fused code of others", rows)


def _compared(title, rows):
    names = [name for name in PEERS if any(name in row.seconds for row in rows)]
    lines = [
        (
            *(label_of(row.case), row.epilogue.name, row.operation, row.pages, str(row.layers)),
            _milliseconds(row.seconds["bnext"]),
            *(f"{row.ratio(n, 'bnext'):.2f}" if n in row.seconds else NO_VALUE for n in names),
        )
        for row in rows
    ]
    header = ("case", "epilogue", "operation", "pages", "layers", "bnext ms")
    header = (*header, *(f"x {peers.TITLES[n]}" for n in names))
    return _titled(title, header, lines, 4)

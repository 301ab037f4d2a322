"""The report: what was measured, the fit and its errors, assumptions, the prediction."""

import statistics

from benchmarks.barrier import model, plot, prediction, skew, tables
from benchmarks.barrier.cases import ENGINES, KINDS, LAYERS
from benchmarks.barrier.prediction import NAMES, share
from benchmarks.barrier.results import fits_processors, median, select
from benchmarks.kit.tables import facts, facts_of, markdown, plain

PICTURE = "model.png"

HOW = """\
- All members call the same things in turns, forwards and backwards; a figure is the median over the
  turns of the mean time of a call, by the clock of rank 0, with the 10th and 90th percentile. Every
  way must compute what bnext computes, or the run fails.
- *threading.Barrier + NumPy*: the last thread to come merges with NumPy while the others wait.
- *Pickled + NumPy*: `allgather` (mpi4py) or `all_gather_object` (PyTorch) of (count, mean, m2), and
  *packed + NumPy*: one `Allgather` or `all_gather` of the same numbers in one array; each rank then
  merges all rows.
- *One call*: the whole batch in one call of each pass, by all processors, while nobody else
  computes. Members of a group compute in one thread each.
- *Allreduce*: the engine's own, as its users call it, of as many bytes as bnext sends; *polled*:
  the same, started and then asked for in a loop without pause. *bnext's own* is an exchange less
  its allreduces: headers, checks, shifts, and waiting in a way that can end in a time-out.
- \\*: more members than processors. They wait for a processor then, not for each other: an MPI that
  spins, and whoever polls, keeps the processor from the rank that all wait for until the system
  takes it away, after milliseconds. No such row is used for the fit. (gloo has threads of its own,
  so that two ranks compete for two processors as well.)
"""


def fits(document):
    """Engines that could be fitted."""
    found = {name: model.fit(document, name) for name in ENGINES}
    return {name: engine for name, engine in found.items() if engine}


def write_report(document, folder):
    """Write report.md and the plot; returns what a terminal should show."""
    assumptions = prediction.Assumptions.of(document["assumptions"])
    engines, found = fits(document), skew.fit(document["jitter"])
    setups = prediction.setups(document, engines, assumptions)
    drawn = bool(engines or found)
    if drawn:
        caption = " ".join(line.replace("`", "") for line in assumed(document, assumptions))
        plot.draw(
            document, list(engines.values()), setups, found, assumptions, caption, folder / PICTURE
        )
    lines = list(in_short(document, assumptions, setups, found))
    text = [
        *_introduction(document["environment"]),
        "## In short\n\n" + "".join(f"- {line}\n" for line in lines),
        *_threads(document),
        *(part for name in ENGINES for part in _processes(document, name, engines.get(name))),
        *_model(document, engines),
        *_prediction(document, assumptions, setups, found, drawn),
        f"## What was not measured\n\n{tables.skipped(document)}",
        f"## How it was measured\n\n{HOW}",
    ]
    (folder / "report.md").write_text("\n".join(text))
    return summary(document, assumptions, setups, found)


def in_short(document, assumptions, setups, found):
    """Sentences with the figures that one looks for."""
    if rows := select(document, what="exchange", engine="threads"):
        shares = sorted(median(r, "bnext") / median(r, "barrier") for r in rows)
        yield (
            f"Threads: an exchange takes {statistics.median(shares):.2f} of the time of "
            f"threading.Barrier + NumPy ({shares[0]:.2f} to {shares[-1]:.2f} for all numbers of "
            "threads and channels)."
        )
    for name in ENGINES:
        rows = select(document, what="exchange", engine=name, kind="moments")
        rows = [r for r in rows if r["ranks"] > 1 and fits_processors(document, r)]
        for r in rows[:1] + rows[-1:]:
            times = {n: f"{tables.microseconds(median(r, n))} us" for n in r["seconds"]}
            yield (
                f"{NAMES[name]}, {r['ranks']} processes, {r['channels']:,} channels: an exchange "
                f"of Moments takes {times['bnext']}, of which allreduce {times['blocking']}; "
                f"pickled + NumPy {times['pickled']}, packed + NumPy {times['packed']}."
            )
    for kind, compute in assumptions.compute_seconds.items():
        for ranks in (64, 16384):
            shares = [
                f"{s.title} {tables.percent(share(s.step_seconds(ranks), compute))}" for s in setups
            ]
            if found:
                waits = prediction.waiting(found, ranks, compute).every
                shares.append(f"waiting for the slowest {tables.percent(share(waits, compute))}")
            if shares:
                yield f"Predicted share of a step of {ranks:,} {kind} ranks: {'; '.join(shares)}."


def summary(document, assumptions, setups, found):
    """The prediction, for a terminal."""
    parts = []
    for kind, compute in assumptions.compute_seconds.items():
        table = plain(tables.at_scale(setups, found, compute))
        title = f"ResNet-50 step, {kind} ranks, {1e3 * compute:.3g} ms of computing"
        parts.append(f"{title}: the barriers' ms, and share of the step\n{table}\n")
    lines = [f"- {line}" for line in assumed(document, assumptions)]
    return "\n".join([*parts, "Assumptions:", *lines])


def assumed(document, a):
    """Sentences: all that the prediction takes for granted."""
    compute = a.compute_seconds
    return (
        f"A step takes 3 x 2 x {prediction.FORWARD_GMACS} GFLOP an image of 224 x 224; a GPU-like "
        f"rank sustains {a.tflops:g} TFLOP/s on {a.images} images ({1e3 * compute['GPU-like']:.3g} "
        f"ms), a CPU-like one {a.cpu_tflops:g} TFLOP/s on {a.cpu_images} "
        f"({1e3 * compute['CPU-like']:.3g} ms).",
        f"There are {sum(LAYERS.values())} batch-norm layers, with {len(KINDS)} exchanges each, "
        "none of which overlaps with computing.",
        f"{a.ranks_per_node} ranks a machine: hops inside are as measured here "
        f"({document['environment'].get('processor', 'unknown')}), those between are assumed: "
        f"{a.latency_us:g} us and {a.bandwidth_gbs:g} GB/s, or pessimistically (TCP over Ethernet) "
        f"{a.tcp_latency_us:g} us and {a.tcp_bandwidth_gbs:g} GB/s. Numbers are added up as fast "
        "as here.",
        "MPI sums inside each machine, among one rank of each, and hands the result out, which "
        "takes as long as the sum inside: by recursive doubling, or Rabenseifner's algorithm where "
        "that is cheaper. gloo's ring goes through all ranks at the pace of its slowest hop. No "
        "contention in the network.",
        "What bnext does for an exchange takes as long as in two processes here; copies between a "
        "GPU and the host are not counted.",
        "Waiting: each rank is disturbed as a lone thread of this machine is, with a probability "
        "and for an exponentially distributed time that were fitted, and independently of the "
        "others; uneven data is not counted. Gradients are summed once a step anyway: the waiting "
        "with one barrier a step is no cost of batch normalization.",
    )


def _introduction(about):
    usual = facts_of(about)
    engines = about.get("engines", {})
    lines = [
        ("Date", usual["Date"]),
        ("Processor", f"{about.get('processor')}, {about['usable_processors']} usable"),
        ("Versions", usual["Versions"]),
        ("Engines", ", ".join(engines.values()) or "none"),
        *((name, usual[name]) for name in ("Commit", "System")),
        ("Load before and after", about.get("load", "unknown")),
    ]
    title = f"# The barrier on {about.get('processor')}, {str(about.get('date')).split()[0]}\n"
    if about.get("quick"):
        title += "\nA quick run: for looking at, not for quoting.\n"
    return title, facts(lines)


def _threads(document):
    if not select(document, engine="threads"):
        return
    yield "## Threads\n\nOne exchange, from call to result. \\*: more threads than processors.\n"
    for kind in KINDS:
        yield f"### {TITLES[kind]}\n\n{tables.exchanges(document, 'threads', kind)}"
    yield f"### Training steps\n\nForward and backward.\n\n{tables.steps(document, 'threads')}"


TITLES = {"moments": "Moments, in the forward pass", "sums": "Sums, in the backward pass"}


def _processes(document, name, engine):
    if not select(document, engine=name):
        return
    yield f"## Processes, {NAMES[name]}\n\n\\*: more processes than processors.\n"
    for kind in KINDS:
        yield f"### {TITLES[kind]}\n\n{tables.exchanges(document, name, kind)}"
    yield f"### What bnext adds to allreduce\n\n{tables.overhead(document, name)}"
    yield f"### Training steps\n\nForward and backward.\n\n{tables.steps(document, name)}"
    text = "Without bnext, of so many bytes in each process, beside the model."
    yield f"### Allreduce\n\n{text}\n\n{tables.allreduces(document, name, engine)}"


def _model(document, engines):
    yield "## The model\n"
    for name in ENGINES:
        if name not in engines:
            yield f"{NAMES[name]} was not measured with a processor for each process.\n"
    if engines:
        yield (
            "A hop takes its latency, and its bytes at its rate (adding up included). An allreduce "
            "is made of hops: "
            + "; ".join(f"{NAMES[n]}: {model.ALGORITHMS[n]}" for n in engines)
            + ". *Large*: the rate of Rabenseifner's algorithm, fitted above "
            f"{model.LARGE // 1024} KiB. *Own*: what an exchange of bnext takes beyond its "
            "allreduces. Least squares of relative errors, no constant below 0, from rows with a "
            "processor for each process.\n"
        )
        yield tables.constants(document, engines.values())
    if document["jitter"]:
        yield (
            "### Waiting for the slowest\n\nThe same work, over and over in one thread, in "
            "segments of several lengths: by how much the longest of k exceeds their mean. The "
            "model: a segment is *disturbed* with this probability, *by* an exponentially "
            "distributed time of this mean; both fitted to what the longest of 2, 4, 8, ... "
            "exceeded the mean by. *Normal*: a normal distribution of the same deviation, for "
            "comparison.\n\n"
            f"{tables.jitter(document)}"
        )


def _prediction(document, assumptions, setups, found, drawn):
    yield "## Prediction for ResNet-50\n"
    if drawn:
        yield f"![Measured allreduce, and the predicted share of a step]({PICTURE})\n"
    yield "Assumptions:\n\n" + "".join(f"- {text}\n" for text in assumed(document, assumptions))
    for kind, compute in assumptions.compute_seconds.items():
        header, *lines = tables.at_scale(setups, found, compute)
        yield (
            f"### A step, {kind} ranks ({1e3 * compute:.3g} ms of computing)\n\n"
            "Milliseconds of all exchanges of a step, and their share of a step that becomes as "
            "much longer. Waiting for the slowest comes on top.\n\n"
            f"{markdown(header, lines)}"
        )
    for setup in setups:
        text = "Microseconds of both exchanges, without waiting for the slowest."
        yield f"### A layer, {setup.title}\n\n{text}\n\n{tables.layers(setup)}"
    if not setups:
        yield "No engine was fitted, so that nothing is predicted of exchanges.\n"

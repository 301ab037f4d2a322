"""The tables of the report, in Markdown."""

import statistics

from benchmarks.barrier import model, prediction, skew
from benchmarks.barrier.cases import KINDS, LAYERS
from benchmarks.barrier.prediction import NAMES
from benchmarks.barrier.results import fits_processors, median, select
from benchmarks.kit.tables import NO_VALUE, markdown

TITLES = {
    "barrier": "threading.Barrier + NumPy",
    "pickled": "pickled + NumPy",
    "packed": "packed + NumPy",
    "one call": "one call",
}
SKEW_OF = (4, 64, 1024)  # how many the longest is shown of


def microseconds(seconds):
    value = seconds * 1e6
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def milliseconds(seconds):
    value = seconds * 1e3
    return (
        f"{value:.3f}" if value < 0.9995 else f"{value:.2f}" if value < 99.995 else f"{value:,.0f}"
    )


def percent(value):
    return f"{value:.2%}" if value < 0.0995 else f"{value:.0%}"


def spread(timing):
    """The median, and the 10th and 90th percentile."""
    middle, low, high, _ = timing
    return f"{microseconds(middle)} ({microseconds(low)}-{microseconds(high)})"


def ranks_of(document, row):
    """The number; starred where ranks share processors."""
    return f"{row['ranks']}" if fits_processors(document, row) else f"{row['ranks']}\\*"


def times(document, rows, size_title, size_of):
    """A line for each row: bnext's time, the others', and how many times as long bnext takes."""
    names = [name for name in TITLES if any(name in r["seconds"] for r in rows)]
    header = ["members", size_title, "bnext us (p10-p90)"]
    header += [text for name in names for text in (f"{TITLES[name]} us", "bnext / it")]
    lines = []
    for r in rows:
        line = [ranks_of(document, r), size_of(r), spread(r["seconds"]["bnext"])]
        for name in names:
            there = name in r["seconds"]
            line.append(microseconds(median(r, name)) if there else NO_VALUE)
            line.append(f"{median(r, 'bnext') / median(r, name):.2f}" if there else NO_VALUE)
        lines.append(line)
    return markdown(header, lines)


def exchanges(document, engine, kind):
    rows = select(document, what="exchange", engine=engine, kind=kind)
    return times(document, rows, "channels", lambda r: f"{r['channels']:,}")


def steps(document, engine):
    rows = select(document, what="step", engine=engine)
    return times(document, rows, "shard", lambda r: "x".join(map(str, r["shard"])))


def overhead(document, engine):
    """Exchanges beside the allreduces of as many bytes that they consist of."""
    sent = model.messages(document, engine)
    header = (
        *("members", "channels", "exchange of", "bytes", "bnext us", "allreduce us", "polled us"),
        "bnext's own us",
    )
    lines = [
        (
            ranks_of(document, r),
            f"{r['channels']:,}",
            r["kind"],
            " + ".join(f"{n:,}" for n in sent[r["channels"]][r["kind"]]),
            *(microseconds(median(r, name)) for name in ("bnext", "blocking", "polled")),
            microseconds(max(0.0, median(r, "bnext") - median(r, "blocking"))),
        )
        for r in select(document, what="exchange", engine=engine)
    ]
    return markdown(header, lines)


def allreduces(document, name, engine):
    """Those of the engine alone, beside the model where there is one."""
    header = ["members", "bytes", "us (p10-p90)", "polled us"]
    header += ["model us", "off by"] if engine else []
    lines = []
    for r in select(document, what="allreduce", engine=name):
        line = [ranks_of(document, r), f"{r['bytes']:,}", spread(r["seconds"]["blocking"])]
        line.append(microseconds(median(r, "polled")))
        if engine:
            modelled = model.modelled(document, engine, r)
            off = f"{modelled / model.measured(r) - 1:+.0%}"
            fitted = fits_processors(document, r)
            line += [microseconds(modelled), off if fitted else "not fitted"]
        lines.append(line)
    return markdown(header, lines)


def constants(document, engines):
    header = (
        *("library", "hop us", "GB/s", "large: GB/s"),
        *(f"own, {kind}: us{more}" for kind in KINDS for more in ("", " per 1,000 channels")),
        *("allreduce: rms error", "largest", "exchange: rms error", "largest"),
    )
    lines = []
    for engine in engines:
        line = [NAMES[engine.name], microseconds(engine.small.latency)]
        line += [_rate(hop) for hop in (engine.small, engine.large)]
        for kind in KINDS:
            fixed, per_channel = engine.own[kind]
            line += [microseconds(fixed), microseconds(1000 * per_channel)]
        for errors in model.residuals(document, engine).values():
            line += _errors(errors)
        lines.append(line)
    return markdown(header, lines)


def _rate(hop):
    return f"{1e-9 / hop.per_byte:.2f}" if hop.per_byte else "no limit"


def _errors(errors):
    if not errors:
        return [NO_VALUE, NO_VALUE]
    rms = statistics.fmean(error * error for error in errors) ** 0.5
    return [f"{rms:.0%}", f"{max(errors, key=abs):+.0%}"]


def jitter(document):
    """What the longest of k segments exceeds the mean by, beside two distributions."""
    header = ["segment us", "segments", "deviation us", "disturbed", "by us"]
    header += [f"of {k:,}: {what}" for k in SKEW_OF for what in ("measured us", "model", "normal")]
    lines = []
    for row in document["jitter"]:
        measured = dict(row["excess"])
        work = skew.fit_work(row["seconds"], row["excess"])
        line = [microseconds(row["seconds"]), f"{row['segments']:,}", microseconds(row["std"])]
        line += [percent(work.probability), microseconds(work.delay)]
        for k in SKEW_OF:
            values = work.excess(k), row["std"] * skew.normal_maximum(k)
            if k in measured:
                line += [microseconds(value) for value in (measured[k], *values)]
            else:
                line += [NO_VALUE, *map(microseconds, values)]
        lines.append(line)
    return markdown(header, lines)


# --- the prediction -------------------------------------------------------------------------------


def layers(setup):
    """Both exchanges of one layer, by channels and ranks."""
    header = ("channels", "layers", *(f"{ranks:,} ranks" for ranks in prediction.FEW_RANKS))
    lines = [
        (
            f"{channels:,}",
            str(count),
            *(microseconds(setup.layer_seconds(n, channels)) for n in prediction.FEW_RANKS),
        )
        for channels, count in LAYERS.items()
    ]
    return markdown(header, lines)


def at_scale(setups, found, compute):
    """Milliseconds of a step, and the share of a step that becomes as much longer."""
    header = ["ranks", *(setup.title for setup in setups)]
    if found:
        header += ["waiting", "with one barrier a step"]
        header += [f"{setup.title}, and waiting" for setup in setups[:1]]
    lines = []
    for ranks in prediction.RANKS:
        costs = [setup.step_seconds(ranks) for setup in setups]
        line = [f"{ranks:,}", *(_cost(cost, compute) for cost in costs)]
        if waits := prediction.waiting(found, ranks, compute):
            line += [_cost(waits.every, compute), _cost(waits.one, compute)]
            line += [_cost(cost + waits.every, compute) for cost in costs[:1]]
        lines.append(line)
    return [header, *lines]


def _cost(cost, compute):
    return f"{milliseconds(cost)} ms {percent(prediction.share(cost, compute))}"


def skipped(document):
    """What was not measured, with the reason."""
    lines = [(item["part"], item["reason"]) for item in document["skipped"]]
    return markdown(("library", "reason"), lines, "None.\n")

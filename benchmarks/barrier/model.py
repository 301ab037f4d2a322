"""The model of a collective: hops between ranks, and constants fitted to what was measured.

A hop takes ``latency + bytes * per_byte``; adding up is part of `per_byte`. For the sum of B bytes
over P ranks:

    recursive doubling   ceil(log2 P) hops of B
    Rabenseifner         2 ceil(log2 P) latencies, and 2 (P - 1) / P of B each way
    ring                 2 (P - 1) hops of B / P

MPI libraries double for small messages and follow Rabenseifner for large ones (Thakur,
Rabenseifner, Gropp 2005), here: whichever is cheaper. gloo's default is a ring. One rank needs
nothing.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from benchmarks.barrier import results
from benchmarks.barrier.cases import KINDS

ALGORITHMS = {"mpi": "recursive doubling, or Rabenseifner's", "gloo": "ring"}
LARGE = 1 << 16  # bytes; above, MPI is taken to follow Rabenseifner, and the bandwidth is fitted


@dataclass(frozen=True)
class Hop:
    """One message from rank to rank: seconds, and seconds for each byte."""

    latency: float
    per_byte: float

    def seconds(self, nbytes):
        return self.latency + nbytes * self.per_byte


def rounds(ranks):
    """ceil(log2 ranks), exactly."""
    return (ranks - 1).bit_length()


def recursive_doubling(ranks, nbytes, hop):
    return rounds(ranks) * hop.seconds(nbytes)


def rabenseifner(ranks, nbytes, hop):
    return 2 * rounds(ranks) * hop.latency + 2 * (ranks - 1) / ranks * nbytes * hop.per_byte


def ring(ranks, nbytes, hop):
    return 2 * (ranks - 1) * hop.seconds(nbytes / ranks)


@dataclass(frozen=True)
class Engine:
    """An engine on one machine: its hops, and what bnext adds to each of its exchanges.

    `small` is the hop of whole messages (of any message, for a ring), `large` that of parts of
    large ones. Besides its sums over ranks, an exchange of C channels takes ``a + C * b``, with
    `own` of its kind for (a, b).
    """

    name: str
    small: Hop
    large: Hop
    own: dict

    def allreduce_seconds(self, ranks, nbytes):
        """One sum over ranks of one machine."""
        if self.name == "gloo":
            return ring(ranks, nbytes, self.small)
        return cheaper(ranks, nbytes, self.small, self.large)

    def own_seconds(self, kind, channels):
        fixed, per_channel = self.own[kind]
        return fixed + channels * per_channel


def cheaper(ranks, nbytes, small, large):
    """What an engine that chooses its algorithm by size takes."""
    return min(recursive_doubling(ranks, nbytes, small), rabenseifner(ranks, nbytes, large))


# --- the fit --------------------------------------------------------------------------------------


def nonnegative(columns, values, units):
    """Coefficients >= 0 with which the columns come nearest to the values.

    Nearest: with the least sum of squares of errors, each in its unit. There are one or two
    columns, so every subset of them is tried.
    """
    units = np.asarray(units, float)
    scaled = np.asarray(columns, float).T / units[:, None]
    values = np.asarray(values, float) / units
    best, least = np.zeros(scaled.shape[1]), math.inf
    for size in range(scaled.shape[1] + 1):
        for chosen in map(list, itertools.combinations(range(scaled.shape[1]), size)):
            found = np.linalg.lstsq(scaled[:, chosen], values, rcond=None)[0] if chosen else []
            error = np.square(scaled[:, chosen] @ found - values).sum()
            if np.all(np.greater_equal(found, 0)) and error < least:
                best, least = np.zeros(scaled.shape[1]), error
                best[chosen] = found
    return [float(value) for value in best]


def fit(document, name):
    """The engine fitted to what was measured with a processor for each rank; None without that.

    Allreduces alone give the hops; what exchanges take beyond theirs is what bnext adds.
    """
    rows = results.select(document, what="allreduce", engine=name)
    rows = [r for r in rows if r["ranks"] > 1 and results.fits_processors(document, r)]
    small_rows = [r for r in rows if name == "gloo" or r["bytes"] <= LARGE]
    if len({r["bytes"] for r in small_rows}) < 2:
        return None
    algorithm = ring if name == "gloo" else recursive_doubling
    times = [results.median(r, "blocking") for r in small_rows]
    units = Hop(1, 0), Hop(0, 1)
    columns = [[algorithm(r["ranks"], r["bytes"], unit) for r in small_rows] for unit in units]
    small = Hop(*nonnegative(columns, times, times))
    large = _large_hop([r for r in rows if r["bytes"] > LARGE], small) if name == "mpi" else small
    return Engine(name, small, large, {kind: _own(document, name, kind) for kind in KINDS})


def _large_hop(rows, small):
    """Of the same latency, with the bandwidth of large messages."""
    if not rows:
        return small
    times = np.array([results.median(r, "blocking") for r in rows])
    moved, waited = (
        np.array([rabenseifner(r["ranks"], r["bytes"], unit) for r in rows])
        for unit in (Hop(0, 1), Hop(small.latency, 0))
    )
    return Hop(small.latency, *nonnegative([moved], times - waited, times))


def _own(document, name, kind):
    """What exchanges take beyond their sums over ranks: each of them, and each of its channels."""
    rows = results.select(document, what="exchange", engine=name, kind=kind)
    rows = [r for r in rows if r["ranks"] > 1 and results.fits_processors(document, r)]
    if not rows:
        return 0.0, 0.0
    whole, sums = (np.array([results.median(r, n) for r in rows]) for n in ("bnext", "blocking"))
    channels = np.array([r["channels"] for r in rows], float)
    return tuple(nonnegative([np.ones_like(channels), channels], whole - sums, whole))


def residuals(document, engine):
    """Relative errors of the model where it was fitted: of allreduces, and of exchanges."""
    found = {"allreduce": [], "exchange": []}
    for what, errors in found.items():
        for r in results.select(document, what=what, engine=engine.name):
            if r["ranks"] > 1 and results.fits_processors(document, r):
                errors.append(modelled(document, engine, r) / measured(r) - 1)
    return found


def measured(r):
    return results.median(r, "blocking" if r["what"] == "allreduce" else "bnext")


def modelled(document, engine, r):
    """Seconds that the model has for a row."""
    if r["what"] == "allreduce":
        return engine.allreduce_seconds(r["ranks"], r["bytes"])
    sums = messages(document, engine.name)[r["channels"]][r["kind"]]
    own = engine.own_seconds(r["kind"], r["channels"])
    return own + sum(engine.allreduce_seconds(r["ranks"], nbytes) for nbytes in sums)


def messages(document, name):
    """Bytes of the sums over ranks that an exchange consists of, by channels and kind."""
    return {m["channels"]: m for m in document["messages"] if m["engine"] == name}

"""The calls of each library, and rows of their times."""

import contextlib
import functools
from dataclasses import dataclass, replace
from statistics import median

import bnext
from benchmarks import onednn, peers
from benchmarks.epilogues.cases import (
    ADD_RELU,
    COSTS,
    NONE,
    OPERATIONS,
    RELU,
    Epilogue,
    large,
    layers,
    variants,
)
from benchmarks.kit.documents import label_of
from benchmarks.shared_libraries import UnavailableError
from bnext.bench.cases import EPS, Case, draw
from bnext.bench.heap import recycled_pages
from bnext.bench.timing import alternate

TRIES = 3
# Room for arrays that calls with warm pages allocate, in sizes of x (`recycled_pages`): at most
# four are alive at a time.
ROOM = 8


def bnext_calls(data, epilogue, pages="warm"):
    """This package's calls; with warm pages, y and dx go to `data.out`."""
    out = data.out if pages == "warm" else None
    x, dy, weight, bias = data.x, data.dy, data.weight, data.bias
    after = epilogue.arguments(data)
    saved = bnext.batch_norm_forward(x, weight, bias, eps=EPS, **after)[1]
    again = after["residual"] if saved.reads_residual else None
    return {
        "forward": lambda: bnext.batch_norm_forward(x, weight, bias, eps=EPS, out=out, **after),
        "backward": lambda: bnext.batch_norm_backward(
            dy, x, saved, weight, out=out, residual=again
        ),
    }


def torch_calls(data, epilogue, *, compiled=False):
    chain = {"residual": epilogue.residual, "relu": epilogue.activation == "relu"}
    return peers.chain_calls(data, **chain, compiled=compiled)


def onednn_calls(data, epilogue):
    """oneDNN in its fastest layout, with a ReLU; an addition it fuses on GPUs only."""
    if epilogue.residual:
        return {}
    calls = onednn.best_calls(data, relu=epilogue.activation == "relu")
    return {operation: calls[operation, "warm"] for operation in OPERATIONS}


compiled_calls = functools.partial(torch_calls, compiled=True)
PEERS = {"torch": torch_calls, "compile": compiled_calls, "onednn_best": onednn_calls}


@dataclass(frozen=True)
class Row:
    """One operation: median seconds of each epilogue, or of each library."""

    case: Case
    operation: str
    seconds: dict
    epilogue: Epilogue = NONE
    pages: str = "warm"
    layers: int = 1  # like this one

    def ratio(self, name, to):
        return self.seconds[name] / self.seconds[to]


def medians(calls, case, pages, seconds):
    """Median seconds of `calls`, taken in turns."""
    warm = recycled_pages(ROOM * case.nbytes) if pages == "warm" else contextlib.nullcontext()
    with warm:
        timings = alternate(calls, seconds * len(calls))
    return {name: timing.median for name, timing in timings.items()}


def cost(case, operation, seconds):
    """One line of the first table: the plain operation, and with each epilogue."""
    promised = COSTS[operation]
    found = []
    while len(found) < TRIES:
        data = draw(case, seed=len(found))
        calls = {e: bnext_calls(data, e)[operation] for e in (NONE, *promised)}
        found.append(Row(case, operation, medians(calls, case, "warm", seconds)))
        if all(most is None or found[0].ratio(e, NONE) <= most for e, most in promised.items()):
            break
    plain = median(row.seconds[NONE] for row in found)
    typical = {e: plain * median(row.ratio(e, NONE) for row in found) for e in promised}
    return replace(found[0], seconds={NONE: plain, **typical})


def compare(case, epilogue, names, seconds, *, pages="warm", layers=1, notes=None):
    """Rows of bnext beside the peers of these names; who refuses is left out, with a note."""
    data = draw(case)
    prepared = {"bnext": bnext_calls(data, epilogue, pages)}
    for name in names:
        try:
            prepared[name] = PEERS[name](data, epilogue)
        except UnavailableError as reason:
            note = f"{peers.TITLES[name]} is left out for {label_of(case)}: {reason}"
            if notes is not None and note not in notes:
                notes.append(note)
    for operation in OPERATIONS:
        calls = {name: found[operation] for name, found in prepared.items() if found}
        times = medians(calls, case, pages, seconds)
        yield Row(case, operation, times, epilogue, pages, layers)


def network(pages, dtypes, seconds):
    """A row for each kind of layer of ResNet-50, one after the other."""
    return [
        row
        for layer, epilogue, count in layers()
        for case in variants(layer, dtypes)
        for row in compare(case, epilogue, ("torch",), seconds, pages=pages, layers=count)
    ]


def beside_fused(seconds, notes):
    """The large shapes, planar and in float32, beside the fused code of others."""
    return [
        row
        for case in large()
        for epilogue in (RELU, ADD_RELU)
        for row in compare(case, epilogue, ("compile", "onednn_best"), seconds, notes=notes)
    ]

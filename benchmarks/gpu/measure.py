"""Measuring: rows for each case, and the accuracy beside them."""

import time
import traceback

import bnext
from benchmarks import accuracy
from benchmarks.gpu import peers, timing
from benchmarks.gpu.cases import OPERATIONS
from benchmarks.gpu.results import Row
from benchmarks.gpu.sanitize import OPERANDS
from benchmarks.kit.documents import label_of
from bnext.bench.libraries import as_tensor, import_torch

SECONDS = 0.03  # of kernels, for each operation of each case
WALL_SECONDS = 0.02
LONGEST_REASON = 200  # characters; PyTorch lists all its backends where one is missing


def measure(
    groups, device, *, run, deadline, operations=OPERATIONS, log=print, keep=lambda row: None
):
    """Measure the groups until the deadline (of `time.monotonic`), or until Ctrl-C.

    Each row is given to `keep` as soon as it is measured.

    Returns
    -------
    rows : list of Row
    skipped : list of dict
        What was left out, with the reason; `failed` is true where bnext could not do it.
    """
    torch, rows, skipped, over = import_torch(), [], [], ""
    for group in groups:
        begin, before = time.monotonic(), len(rows)
        for case in group.problems():
            about = {"group": group.name, "case": label_of(case)}
            if over or time.monotonic() > deadline:
                skipped.append({**about, "reason": over or "out of time"})
                continue
            try:
                for row in _case(group, case, device, run, operations, skipped, about):
                    rows.append(row)
                    keep(row)
            except KeyboardInterrupt:
                over = "interrupted"
                skipped.append({**about, "reason": over})
            except torch.cuda.OutOfMemoryError as error:
                skipped.append({**about, "reason": _line(error)})
            except Exception as error:  # the other cases may do better; the log has the rest
                log(traceback.format_exc())
                skipped.append({**about, "peer": "bnext", "reason": _line(error), "failed": True})
        seconds = time.monotonic() - begin
        log(f"{group.name} {'/'.join(group.dtypes)}: {len(rows) - before} rows, {seconds:.0f} s")
    return rows, skipped


def _case(group, case, device, run, operations, skipped, about):
    """The rows of one case."""
    torch = import_torch()
    number, cold = timing.sets_for(case, device["l2_bytes"])
    sets = peers.draw(case, number, run)
    calls, backends = {"bnext": peers.bnext_calls(sets)}, {}
    for name in group.peers:
        try:
            calls[name] = _prepared(name, sets, backends)
        except Exception as error:  # whatever the peer may say
            skipped.append({**about, "peer": name, "reason": _line(error)})
    if backends.get("torch") not in (None, "cuDNN"):
        try:
            calls["cudnn"] = peers.cudnn_calls(sets)
        except Exception as error:
            skipped.append({**about, "peer": "cudnn", "reason": _line(error)})
    expected = peers.exact(sets[0])
    public = {"bnext": peers.bnext_calls(sets, out=False)}
    if "torch" in calls:
        public["torch"] = calls["torch"]
    for operation in operations:
        found = {}
        for name in calls:
            if name == "bnext":
                sets[0].out.fill_(float("nan"))  # what is not written must not pass
            found[name] = peers.errors(operation, calls[name][operation](sets[0]), expected)
        graphs = {"copy": timing.capture(lambda s: s.out.copy_(s.x), sets)}
        for name in calls:
            try:
                graphs[name] = timing.capture(calls[name][operation], sets)
            except Exception as error:
                if name == "bnext":
                    raise
                skipped.append({**about, "peer": name, "reason": _line(error)})
        kernel = timing.replay({n: g for n, (g, _) in graphs.items()}, number, SECONDS)
        del graphs
        copy = kernel.pop("copy")
        if backends.get("torch") == "cuDNN":
            kernel["cudnn"] = kernel["torch"]
        wall = timing.walls({n: public[n][operation] for n in public}, sets, WALL_SECONDS)
        path = plan_of(case, operation, sets[0]).path
        yield Row(
            *(group.name, case, operation, kernel, copy, wall, backends, found, path, number, cold)
        )
    torch.cuda.empty_cache()


def _prepared(name, sets, backends):
    if name == "compile":
        return peers.compile_calls(sets)
    calls, backends[name] = peers.torch_calls(sets, cudnn=name == "torch")
    return calls


def plan_of(case, operation, s):
    """How bnext does it; the operation is one of the suite's, or a phase."""
    kernels = bnext.cuda._load()
    operation = {"inference": "normalize"}.get(operation, operation)
    operands = {"x": s.x, "dy": s.dy, "y": s.out, "dx": s.out}
    tensors = [operands[name] for name in OPERANDS[operation]]
    return kernels.plan(
        operation,
        case.dtype,
        case.shape,
        [t.stride() for t in tensors],
        [t.data_ptr() for t in tensors],
        1,
        kernels.limits(0),
    )


def _line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:LONGEST_REASON]


# --- accuracy, by the rules of accuracy.py --------------------------------------------------------

DRAWS = 2
CASES = tuple(c for c in accuracy.CASES if c.name in ("NCHW 28x28", "NHWC 28x28", "NC 8192x32"))


def accuracy_rows(dtypes, draws=DRAWS):
    """Rows of the accuracy tables: bnext and PyTorch on the GPU, on the same data."""
    libraries = {"bnext": _of_bnext, "torch": _of_torch}
    return list(accuracy.collect(dtypes, draws, libraries, CASES))


def _of_bnext(inputs):
    x, dy, weight, bias = (as_tensor(array).to(peers.DEVICE) for array in inputs[:4])
    y, saved = bnext.batch_norm_forward(x, weight, bias, eps=inputs.eps)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    torch = import_torch()
    statistics = saved.mean, saved.m2 / (saved.count - 1)
    statistics = (torch.as_tensor(s).to(weight.dtype) for s in statistics)
    return accuracy.Results(*map(accuracy.array_of, (y, *gradients, *statistics)))


def _of_torch(inputs):
    return accuracy.of_torch(inputs, peers.DEVICE)

"""Measuring a case: the time of a step, the memory, what of both is batch normalization's."""

import dataclasses
import sys

from benchmarks.kit.turns import in_turns
from benchmarks.models import memory
from benchmarks.models.training import LAYERS, Training, normalizations
from bnext.bench.measure import threads_set_to


def case_row(case, threads, seconds):
    """What JSON holds of a case."""
    print(case.title, file=sys.stderr, flush=True)
    with threads_set_to(threads):
        trainings = {layers: Training(case, layers) for layers in LAYERS}
        counted = len(normalizations(trainings["torch"].network))
        turns = in_turns({name: t.finished_step for name, t in trainings.items()}, seconds)
    del trainings
    row = {
        **dataclasses.asdict(case),
        "title": case.title,
        "threads": threads,
        "normalizations": counted,
        "seconds": turns.packed(),
        "ratio": turns.ratio("torch", "bnext"),
        "shares": {name: round(turns.saved_share(name, "none"), 4) for name in ("torch", "bnext")},
        "memory": {name: memory.measure(case, name, threads) for name in ("torch", "bnext")},
    }
    print(f"  {row['ratio'][0]:.3f} times as fast", file=sys.stderr, flush=True)
    return row

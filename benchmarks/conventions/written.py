"""Files that libraries wrote in a comparison, with their inference: tests/written.

    python -m benchmarks.conventions.written KEPT

KEPT is the folder of arrays that ``python -m benchmarks.conventions --keep KEPT`` has left. Each
file is of the library's layer of rank 4 after the last batch of unequal sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.conventions.batches import Batches
from benchmarks.conventions.environments import ROOT
from benchmarks.conventions.releases import RELEASES
from benchmarks.conventions.stored import Case, Stored

FOLDER = ROOT / "tests" / "written"
RANK, SIZES = 4, "unequal"


def write(kept: Path, folder: Path = FOLDER) -> list[str]:
    """Write the files, and expected.npz: the input x, and each file's y, channels at axis 1."""
    folder.mkdir(exist_ok=True)
    expected = {"x": Batches(kept / "batches.npz").test(RANK)}
    for name in RELEASES:
        if not (kept / f"{name}.npz").exists():
            continue  # it could not be run
        stored = Stored(kept / f"{name}.npz")
        variant, facts = next(iter(stored.facts["variants"].items()))
        case = Case(variant, RANK, SIZES)
        if case not in stored.cases():
            continue
        step = stored.steps(case)[-1]
        data, y = stored.file(case, step), stored.output(case, step)
        if data is not None and y is not None:
            file = f"{name}{facts['suffix']}"
            (folder / file).write_bytes(data)
            expected[file] = y
    np.savez_compressed(folder / "expected.npz", allow_pickle=False, **expected)
    return [*expected][1:]


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")

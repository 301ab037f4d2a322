"""What is asked of the sums over ResNet-50's layers, and of errors, as data."""

import itertools

from benchmarks.kit.promises import Verdict, resnet50_sums

# Norms of errors over norms. A result that is rounded once is half a unit off at most, which for
# evenly spread significands is about a quarter of the unit in the root of the mean square.
LARGEST_ERROR = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 4e-3}
FORWARD_AND_BACKWARD = ("forward", "backward")


def on_chip_bytes(device):
    """The most of a slab that blocks which wait for each other can keep in shared memory.

    From compute capability 9.0 on they are a cluster of 16 at most; before, a block is alone.
    """
    blocks = 16 if device["compute_capability"][0] >= 9 else 1
    return blocks * device["shared_per_block"]


def verdicts(rows, device):
    """What is asked of the speed, beside what was measured."""
    limit = on_chip_bytes(device)
    by_terms, fits = (
        {(s.group, s.dtype, s.layout, s.operation): s for s in resnet50_sums(rows, chosen)}
        for chosen in (lambda row: True, lambda row: row.slab_bytes <= limit)
    )
    passes = itertools.product((64, 256), ("float32", "bfloat16"), FORWARD_AND_BACKWARD)
    for batch, dtype, operation in passes:
        about, group = f"{dtype}, batch {batch}, {operation}", f"resnet50-b{batch}"
        planar, last = (
            by_terms.get((group, dtype, layout, operation))
            for layout in ("planar", "channels last")
        )
        fitting = fits.get((group, dtype, "planar", operation))
        yield Verdict(f"{about}, planar: x PyTorch", 1.3, planar and planar.ratio("torch"))
        yield Verdict(
            f"{about}, planar: of copy, where the slab fits on chip",
            0.8,
            fitting and fitting.share_of_copy,
            f"{fitting.layers} of 53 layers" if fitting else "",
        )
        yield Verdict(f"{about}, channels last: x cuDNN", 1.0, last and last.ratio("cudnn"))


def wrong(rows):
    """Rows whose results are further from float64 than rounding explains."""
    return [
        (row, name, error)
        for row in rows
        for name, error in row.errors.get("bnext", {}).items()
        if not error <= LARGEST_ERROR[row.case.dtype]  # a NaN is wrong as well
    ]

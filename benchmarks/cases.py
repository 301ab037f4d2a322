"""The cases of the suite: shapes as data, in groups that run one at a time."""

import re
from dataclasses import dataclass

import numpy as np

import bnext
from bnext.bench.cases import Case, dtype_of

# The batch-norm layers of ResNet-50 (He et al. 2016): channels, side of the planes, and the number
# of layers like that, of 53.
RESNET50 = (
    *((64, 112, 1), (64, 56, 6), (128, 56, 1), (256, 56, 4), (128, 28, 7), (256, 28, 1)),
    *((512, 28, 5), (256, 14, 11), (1024, 14, 7), (512, 14, 1), (512, 7, 5), (2048, 7, 4)),
)
LAYERS = {f"{c}x{side}x{side}": count for c, side, count in RESNET50}

ROWS = (
    *((64, 20), (64, 512), (256, 1000), (1024, 1024), (8192, 4096)),
    *((100_000, 32), (140_000, 256), (7, 20_000)),
)

# Other tensors: name, shape, whether the channels-last layout is measured as well.
OTHERS = (
    ("cube", (50, 50, 50, 50), True),
    ("volume", (8, 64, 16, 56, 56), True),
    ("large planes", (2, 64, 1024, 1024), True),
    ("few channels", (256, 3, 224, 224), True),
    ("tiny planes", (3200, 64, 4, 4), True),
    ("50 channels", (32, 50, 28, 28), True),
    ("257 channels", (32, 257, 14, 14), True),
    ("rows of 50", (20_000, 50), False),
    ("rows of 257", (20_000, 257), False),
)
MISALIGNED = (
    ("64x56x56, misaligned", (32, 64, 56, 56), True),
    ("2048x7x7, misaligned", (32, 2048, 7, 7), True),
    ("rows of 256, misaligned", (8192, 256), False),
)

# 10^3 to 10^8 elements in half-decades: (16, 64, S, S) and (N, 128).
GROWTH_SIDES = (1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316)
GROWTH_ROWS = (8, 25, 80, 250, 800, 2500, 8000, 25_000, 80_000, 250_000, 800_000)

ALL_DTYPES = ("float32", "float64", "bfloat16", "float16")
THREADS = (1, 2)


@dataclass(frozen=True)
class Pass:
    """Dtypes, measured with these numbers of threads, pages and peers."""

    dtypes: tuple
    threads: tuple = (2,)
    pages: tuple = ("fresh", "warm")
    peers: tuple = ("torch", "onednn", "onednn_best")
    seconds: float = 0.25  # for each operation of each case, unless three turns take longer


@dataclass(frozen=True)
class Group:
    """Cases measured in one process, in the given passes."""

    name: str
    title: str
    cases: tuple
    passes: tuple
    operations: tuple = ("forward", "backward", "inference")


def planes(name, shape, both=True, **properties):
    """The case, planar and channels last."""
    return [Case(name, shape, last, **properties) for last in ((False, True) if both else (False,))]


def resnet50(batch):
    """The layers at this batch size: all planar ones, then all channels-last ones."""
    layouts = zip(*(planes(f"{c}x{s}x{s}", (batch, c, s, s)) for c, s, _ in RESNET50), strict=True)
    return tuple(case for layout in layouts for case in layout)


def rows(shape):
    return Case(f"rows {shape[0]}x{shape[1]}", shape)


def several(table, **properties):
    return tuple(case for row in table for case in planes(*row, **properties))


EVERYBODY = ("torch", "compile", "onednn", "onednn_best", "numpy")
HALF = ("bfloat16", "float16")


def _resnet50(batch, *passes, **properties):
    title = f"ResNet-50's layers at batch {batch}"
    return Group(f"resnet50-b{batch}", title, resnet50(batch), passes, **properties)


def _rows(*passes):
    return Group("rows", "Rows: (N, C)", tuple(map(rows, ROWS)), passes)


EVERYTHING = (
    Pass(("float32",), peers=EVERYBODY),
    Pass(("float32",), threads=(1,)),
    Pass(("bfloat16",)),
    Pass(("float64", "float16"), peers=("torch",), pages=("warm",)),
)
WARM_BESIDE_BEST = {"peers": ("torch", "onednn_best"), "pages": ("warm",)}
CALL = Group(
    "call",
    "The cost of a call: (64, 20)",
    (Case("rows 64x20", (64, 20)),),
    (Pass(("float32",), (1, 2), ("fresh",), ("torch", "torch_no_grad"), 1.0),),
    ("layer", "layer inference"),
)

GROUPS = (
    _resnet50(32, *EVERYTHING),
    _resnet50(1, Pass(("float32",))),
    _resnet50(8, Pass(("float32", "bfloat16"))),
    _resnet50(64, Pass(("float32", "bfloat16"), **WARM_BESIDE_BEST)),
    _resnet50(256, Pass(("float32",), **WARM_BESIDE_BEST), operations=("forward", "backward")),
    _rows(*EVERYTHING),
    Group(
        "others",
        "Other shapes: three dimensions, large planes, few channels, odd numbers of channels",
        several(OTHERS),
        (Pass(("float32", "bfloat16")), Pass(("float64",), peers=("torch",), pages=("warm",))),
    ),
    Group(
        "misaligned",
        "Arrays that begin 4 bytes after an aligned address",
        several(MISALIGNED, aligned=False),
        (Pass(("float32",)), Pass(("float64", *HALF), peers=("torch",), pages=("warm",))),
    ),
    Group(
        "growth",
        "Growth with size",
        (
            *(Case(f"planes of {s}x{s}", (16, 64, s, s)) for s in GROWTH_SIDES),
            *(Case(f"{n} rows of 128", (n, 128)) for n in GROWTH_ROWS),
        ),
        (
            Pass(("float32",), pages=("fresh",), peers=("torch", "numpy")),
            Pass(("float32",), pages=("warm",)),
        ),
        ("forward", "backward"),
    ),
    CALL,
)

# For developers at work: most promises, in two minutes.
QUICK = (
    _resnet50(32, Pass(("float32", "bfloat16"), pages=("warm",), seconds=0.05)),
    _rows(Pass(("float32",), pages=("warm",), seconds=0.05)),
    CALL,
)


def select(pattern, quick=False):
    """The groups whose name the pattern matches in full."""
    return [g for g in (QUICK if quick else GROUPS) if re.fullmatch(pattern, g.name)]


def refusal(dtype):
    """Why bnext cannot be measured with this dtype, or None."""
    try:
        bnext.batch_norm_forward(np.zeros((2, 1), dtype_of(dtype)))
    except (TypeError, ImportError) as error:
        return str(error)
    return None


def fits_memory(case, share=0.6, arrays=8):
    """Whether the arrays of the case, and those of the peers, fit the free memory."""
    free = free_memory()
    return free is None or arrays * case.nbytes < share * free


def free_memory():
    """Bytes available without swapping, where Linux tells."""
    try:
        with open("/proc/meminfo") as lines:
            found = dict(line.split(":") for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None

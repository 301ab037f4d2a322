"""What is measured on a GPU: groups of cases as data, the most telling ones first."""

from dataclasses import dataclass, replace

from benchmarks.cases import OTHERS, ROWS, resnet50, rows, several

PLAIN = ("float32", "bfloat16", "float16")
OPERATIONS = ("forward", "backward", "inference")

# Peers and what tables call them. PyTorch chooses cuDNN by itself where it may; without cuDNN its
# own kernels run.
TITLES = {
    "torch": "PyTorch",
    "torch_native": "PyTorch without cuDNN",
    "cudnn": "cuDNN",
    "compile": "torch.compile",
}


@dataclass(frozen=True)
class Group:
    """Cases, each of which is measured in these dtypes beside these peers."""

    name: str
    title: str
    cases: tuple
    dtypes: tuple = PLAIN
    peers: tuple = ("torch", "torch_native")

    def problems(self):
        """Every case in every dtype."""
        return [replace(case, dtype=dtype) for dtype in self.dtypes for case in self.cases]


def _resnet50(batch, dtypes):
    return Group(
        f"resnet50-b{batch}", f"ResNet-50's layers at batch {batch}", resnet50(batch), dtypes
    )


# torch.compile takes seconds for each case: some of ResNet-50's layers stand for the others, last.
COMPILED = tuple(c for c in resnet50(64) if c.name in ("256x56x56", "1024x14x14"))

GROUPS = (
    _resnet50(64, PLAIN[:2]),
    _resnet50(256, PLAIN[:2]),
    Group("rows", "Rows: (N, C)", tuple(map(rows, ROWS)), PLAIN[:2]),
    Group("others", "Other shapes", several(OTHERS), PLAIN[:2]),
    _resnet50(64, PLAIN[2:]),
    _resnet50(256, PLAIN[2:]),
    Group("rows", "Rows: (N, C)", tuple(map(rows, ROWS)), PLAIN[2:]),
    Group("others", "Other shapes", several(OTHERS), PLAIN[2:]),
    Group("compile", "torch.compile", COMPILED, PLAIN[:2], ("torch", "compile")),
)

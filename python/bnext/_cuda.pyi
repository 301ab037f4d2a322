"""The CUDA kernels: their table for `_core`, and plans and launches for tests and measurements."""

from collections.abc import Sequence
from typing import Any, Final, final

__version__: str

class LayoutError(ValueError):
    """Arrays have to be copied before there is a plan."""

class PathError(ValueError):
    """The forced path cannot run the call."""

@final
class Limits:
    """What a GPU has, as far as launches depend on it; `limits` reads it off a device."""

    def __init__(
        self,
        *,
        compute_capability: tuple[int, int],
        multiprocessors: int,
        shared_per_block: int,
        shared_per_multiprocessor: int,
        cluster: int,
        cooperative: bool,
        reserved: int = 0,
        resident_blocks: int = 2,
    ) -> None: ...
    compute_capability: Final[tuple[int, int]]
    multiprocessors: Final[int]
    shared_per_block: Final[int]
    shared_per_multiprocessor: Final[int]
    cluster: Final[int]
    cooperative: Final[bool]
    reserved: Final[int]
    resident_blocks: Final[int]

@final
class Plan:
    """How one call is launched."""

    operation: Final[str]
    path: Final[str]
    layout: Final[str]
    unit: Final[int]
    workspace_bytes: Final[int]
    launches: Final[list[dict[str, int]]]
    def coverage(self, launch: int = 0, downwards: bool = False) -> bytes: ...

table: Any  # the functions that `_core` calls
row_table: Any  # the same for layer and RMS normalization
twice_table: Any  # the same for the double backward pass of batch normalization

def device_count() -> int: ...
def unavailable_reason() -> str: ...
def device_name(device: int) -> str: ...
def device_problem(device: int) -> str: ...
def device_of(address: int) -> int: ...
def limits(device: int) -> Limits: ...
def environment() -> dict[str, int]: ...
def architectures() -> list[str]: ...
def operations() -> list[str]: ...
def paths(operation: str) -> list[str]: ...
def force_path(path: str | None) -> str | None: ...
def forget_plans() -> None: ...
def plan_figures() -> dict[str, int]: ...
def row_plan(
    backward: bool,
    centered: bool,
    dtype: str,
    rows: int,
    width: int,
    limits: Limits,
    *,
    aligned: int = 0,
    activated: bool = False,
    residual: bool = False,
    wants_parameters: bool = True,
) -> dict[str, int]: ...
def plan(
    operation: str,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    addresses: Sequence[int],
    channel_axis: int,
    limits: Limits,
    path: str | None = None,
    *,
    activated: bool = False,
    residual: bool = False,
) -> Plan: ...
def launch(
    plan: Plan,
    device: int,
    stream: int,
    *,
    x: int = 0,
    y: int = 0,
    dy: int = 0,
    dx: int = 0,
    weight: int = 0,
    bias: int = 0,
    mean: int = 0,
    var: int = 0,
    running_mean: int = 0,
    running_var: int = 0,
    statistics: int = 0,
    sums: int = 0,
    dweight: int = 0,
    dbias: int = 0,
    workspace: int = 0,
    eps: float = 0.0,
    momentum: float = 0.0,
    correction: float = 1.0,
    count: float = 0.0,
    wide_statistics: bool = False,
) -> None: ...

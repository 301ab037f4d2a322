from collections.abc import Callable
from typing import Any, TypedDict, final

import numpy as np
import numpy.typing as npt

__version__: str
ROWS: tuple[str, ...]

_Array = npt.NDArray[Any]
_Float64 = npt.NDArray[np.float64]

class _BuildConfig(TypedDict):
    compiled_isas: list[str]
    available_isas: list[str]
    active_isa: str
    vector_bytes: int
    openmp: str | None
    openmp_file: str | None
    openmp_remedy: str | None
    threads: int
    l2_bytes: int
    l3_bytes: int
    zen: bool
    compiler: str
    build_type: str

@final
class Saved:
    """What a forward call leaves for its backward call: statistics of each channel; read-only."""

    @property
    def count(self) -> int:
        """Values per channel."""

    @property
    def mean(self) -> _Float64:
        """Mean of each channel, shape (C,)."""

    @property
    def mean_low(self) -> _Float64:
        """Low part of the mean, shape (C,): the exact mean is ``mean + mean_low``."""

    @property
    def m2(self) -> _Float64:
        """Sum of squared deviations from the mean, shape (C,); NaN where statistics were given."""

    @property
    def var(self) -> _Float64:
        """Biased variance of each channel, ``m2 / count``, shape (C,)."""

    @property
    def rstd(self) -> _Float64:
        """``1 / sqrt(var + eps)`` of each channel, shape (C,)."""

    @property
    def rows(self) -> _Float64:
        """``mean``, ``m2``, ``var``, ``rstd``, ``mean_low`` as one array, shape (5, C); a copy."""

    @property
    def eps(self) -> float:
        """What was added to the variance."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `x`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of `x`."""

    @property
    def channel_axis(self) -> int:
        """Which axis of `x` has the channels, from 0."""

    @property
    def batch_statistics(self) -> bool:
        """Whether the statistics are the batch's; False where they were given."""

@final
class DeviceSaved:
    """What a forward call on a GPU leaves for its backward call: as `Saved`, on the device."""

    @property
    def rows(self) -> Any:
        """All statistics, shape (5, C): mean, m2, var, rstd, mean_low."""

    mean: Any
    m2: Any
    var: Any
    rstd: Any
    mean_low: Any
    count: int
    eps: float
    shape: tuple[int, ...]
    dtype: Any
    channel_axis: int
    batch_statistics: bool

@final
class Exported:
    def __init__(self, array: npt.ArrayLike) -> None: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def from_dlpack(capsule: Any, name: str = "x") -> _Array: ...
def describe_dlpack(
    capsule: Any, name: str = "x"
) -> tuple[int, tuple[int, ...], tuple[int, ...], str, int, int, bool, Any]: ...
def device_name(device_type: int, device_id: int) -> str: ...
def calls_on(kernels: Any, library: Any, device: int, plain: bool = True) -> Any: ...
def find_libraries_by(function: Callable[[Any], Any]) -> None: ...

class PathError(ValueError): ...
class GroupFailure(RuntimeError): ...  # noqa: N818

def difference(
    got: tuple[int, int, str, int, str], expected: tuple[int, int, str, int, str]
) -> str: ...

@final
class ThreadGroup:
    def __init__(self, size: int, timeout: float) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def timeout(self) -> float: ...
    @property
    def broken(self) -> str: ...
    def enter(self, rank: int) -> int: ...
    def leave(self, rank: int, ticket: int) -> None: ...
    def fail(self, rank: int, ticket: int, message: str) -> None: ...
    def reset(self) -> None: ...
    def exchange(
        self,
        rank: int,
        ticket: int,
        layer: int,
        step: int,
        direction: str,
        channels: int,
        dtype: str,
        owner: int,
        count: int,
        first: _Float64,
        second: _Float64,
        mean_low: _Float64 | None = None,
    ) -> tuple[int, _Float64, _Float64, int, bool, _Float64 | None]: ...

def forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    running_mean: Any,
    running_var: Any,
    momentum: float | None,
    num_batches_tracked: Any,
    eps: float,
    channel_axis: int,
    out: Any,
    bessel: bool = True,
    plain: bool = False,
    keeps: bool = True,
) -> tuple[Any, Saved]: ...
def backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    saved: Saved,
    weight: npt.ArrayLike | None,
    out: Any,
    plain: bool = False,
) -> tuple[Any, Any, Any]: ...
def backward_constant(
    dy: npt.ArrayLike, saved: Saved, weight: npt.ArrayLike | None, out: Any, plain: bool = False
) -> Any: ...
def normalize(
    x: npt.ArrayLike,
    mean: npt.ArrayLike | None,
    var: npt.ArrayLike | None,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
    out: _Array | None,
) -> tuple[_Array, Saved]: ...
def normalize_by_running(
    x: npt.ArrayLike,
    running_mean: npt.ArrayLike | None,
    running_var: npt.ArrayLike | None,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
    out: Any,
    plain: bool = False,
) -> tuple[Any, Saved]: ...
def evaluate(
    x: npt.ArrayLike,
    running_mean: npt.ArrayLike | None,
    running_var: npt.ArrayLike | None,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
    plain: bool = False,
) -> Any: ...
def statistics(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
) -> tuple[Any, Any]: ...
def moments(x: npt.ArrayLike, channel_axis: int) -> tuple[int, _Float64, _Float64]: ...
def collect_stats(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float | None,
    num_batches_tracked: npt.NDArray[np.int64] | None,
    eps: float,
    channel_axis: int,
    out: _Array | None,
) -> tuple[int, _Float64, _Float64, _Float64, str]: ...
def apply_norm(
    x: npt.ArrayLike,
    count: int,
    mean: _Float64,
    mean_low: _Float64 | None,
    m2: _Float64,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
    out: _Array | None,
) -> tuple[_Array, Saved]: ...
def move_running(
    saved: Saved,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float | None,
    num_batches_tracked: npt.NDArray[np.int64] | None,
    bessel: bool = True,
) -> None: ...
def backward_reduce(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    saved: Saved,
    weight: npt.ArrayLike | None = None,
    out: _Array | None = None,
) -> tuple[_Float64, _Float64]: ...
def backward_apply(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    saved: Saved,
    weight: npt.ArrayLike | None,
    sum_dy: npt.ArrayLike,
    sum_dy_xmu: npt.ArrayLike,
    count: float,
    out: _Array | None,
) -> _Array: ...
def parameter_gradients(
    saved: Saved, weight: Any, sum_dy: npt.ArrayLike, sum_dy_xmu: npt.ArrayLike, like: Any = None
) -> tuple[Any, Any]: ...
def restored(x: npt.ArrayLike, rows: _Float64, eps: float, channel_axis: int) -> Saved: ...
def as_array(x: Any, name: str) -> Any: ...
def inspect(x: Any) -> tuple[tuple[int, ...], str]: ...
def misplaced(array: Any, like: Any) -> str: ...
def is_tracer(x: Any) -> bool: ...
def refuse_tracer(x: Any, name: str) -> None: ...
def is_data_dtype(dtype: np.dtype[Any]) -> bool: ...
def check_eps(eps: float) -> float: ...
def check_momentum(momentum: float) -> float: ...
def check_axis(channel_axis: Any, rank: int) -> int: ...
def check_count(count: Any, name: str = "num_batches_tracked") -> None: ...
def check_more_than_one(shape: tuple[int, ...], count: int) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def fix_team(fixed: bool) -> None: ...
def team_figures() -> dict[str, Any]: ...
def share_openmp(library: str) -> bool: ...
def set_isa(name: str) -> None: ...
def active_isa() -> str: ...
def last_isa() -> str: ...
def force_schedule(name: str | None) -> None: ...
def explain(x: _Array, channel_axis: int, operands: int) -> dict[str, Any]: ...
def pool_figures() -> dict[str, int]: ...
def pool_set_limit(bytes: int) -> None: ...
def pool_empty_cache() -> None: ...
def control_limits(groups: str, mounts: str) -> tuple[int | None, float | None, int]: ...
def build_config() -> _BuildConfig: ...

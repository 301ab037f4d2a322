from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict, final

import numpy as np
import numpy.typing as npt

__version__: str
ROWS: tuple[str, ...]

_Array = npt.NDArray[Any]
_Float64 = npt.NDArray[np.float64]
_Values = npt.ArrayLike
_Row = npt.ArrayLike | None  # a value for each channel; None: there is none
_Epilogue = tuple[Any, str | None, float] | None  # residual, activation, negative_slope
# Whether positions count, their weights, what y has at others, the name of the argument.
_Weighting = tuple[npt.NDArray[np.uint8], _Array | None, str, str] | None
_Count = int | float  # of values per channel, or the sum of their weights
_Counter = npt.NDArray[np.int64] | None

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

    count: Final[_Count]
    """Values per channel; with weights, their sum."""
    mean: Final[_Float64]
    """Mean of each channel, shape (C,)."""
    mean_low: Final[_Float64]
    """Low part of the mean, shape (C,): the exact mean is ``mean + mean_low``."""
    m2: Final[_Float64]
    """Sum of squared deviations from the mean, shape (C,); NaN where statistics were given."""
    var: Final[_Float64]
    """Biased variance of each channel, ``m2 / count``, shape (C,)."""
    rstd: Final[_Float64]
    """``1 / sqrt(var + eps)`` of each channel, shape (C,)."""
    rows: Final[_Float64]
    """``mean``, ``m2``, ``var``, ``rstd``, ``mean_low`` as one array, shape (5, C); a copy."""
    address: Final[int]
    """Where the first element of `x` was; 0 in another process."""
    eps: Final[float]
    """What was added to the variance."""
    shape: Final[tuple[int, ...]]
    """Shape of `x`."""
    dtype: Final[np.dtype[Any]]
    """Dtype of `x`."""
    channel_axis: Final[int]
    """Which axis of `x` has the channels, from 0."""
    batch_statistics: Final[bool]
    """Whether the statistics are the batch's; False where they were given."""
    activation: Final[str | None]
    """Name of the activation that followed, or None."""
    residual: Final[bool]
    """Whether a residual was added."""
    reads_residual: Final[bool]
    """Whether the backward pass needs the residual again."""
    in_place: Final[bool]
    """Whether y was written over x: the backward pass takes y in place of x."""
    num_groups: Final[int | None]
    """Groups G of a group or instance normalization, whose statistics are (N, G); else None."""

@final
class RowSaved:
    """What a forward call of layer or RMS normalization leaves for its backward call; read-only."""

    mean: Final[_Float64]
    """Mean of each row, of the shape of `x` without the normalized axes; 0 of RMS normalization."""
    mean_low: Final[_Float64]
    """Low part of the mean: the exact mean is ``mean + mean_low``; 0 but for float64 data."""
    rstd: Final[_Float64]
    """``1 / sqrt(var + eps)`` of each row; of RMS normalization, var is the mean of squares."""
    rows: Final[_Float64]
    """``mean``, ``mean_low`` and ``rstd`` as one array, shape (3, rows); a copy."""
    eps: Final[float]
    """What was added to the variance."""
    centered: Final[bool]
    """Whether the mean was subtracted: not by RMS normalization."""
    shape: Final[tuple[int, ...]]
    """Shape of `x`."""
    normalized_shape: Final[tuple[int, ...]]
    """Lengths of the normalized axes, the last of `x`."""
    dtype: Final[np.dtype[Any]]
    """Dtype of `x`."""
    activation: Final[str | None]
    """Name of the activation that followed."""
    residual: Final[bool]
    """Whether a residual was added."""
    reads_residual: Final[bool]
    """Whether the backward pass needs the residual again."""

@final
class DeviceSaved:
    """What a forward call on a GPU leaves for its backward call: as `Saved`, on the device."""

    rows: Final[Any]
    """All statistics, shape (5, C), or (5, N, G): mean, m2, var, rstd, mean_low."""
    mean: Any
    m2: Any
    var: Any
    rstd: Any
    mean_low: Any
    count: int
    eps: float
    shape: tuple[int, ...]
    num_groups: int | None
    """As `Saved` has it."""
    dtype: Any
    channel_axis: int
    batch_statistics: bool
    activation: Final[str | None]
    residual: Final[bool]
    reads_residual: Final[bool]
    in_place: Final[bool]

@final
class DeviceRowSaved:
    """What a forward call of rows on a GPU leaves for its backward call: as `RowSaved`."""

    rows: Final[Any]
    """mean, mean_low and rstd, of shape 3 and the leading axes of `x`."""
    mean: Any
    mean_low: Any
    rstd: Any
    eps: Final[float]
    centered: Final[bool]
    shape: Final[tuple[int, ...]]
    normalized_shape: Final[tuple[int, ...]]
    dtype: Final[Any]
    activation: Final[str | None]
    residual: Final[bool]
    reads_residual: Final[bool]

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
    size: Final[int]
    timeout: Final[float]
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
        count: _Count,
        first: _Float64,
        second: _Float64,
        mean_low: _Float64 | None = None,
    ) -> tuple[_Count, _Float64, _Float64, int, bool, _Float64 | None]: ...

def forward(
    x: _Values,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    out: Any,
    plain: bool = False,
    keeps: bool = True,
    epilogue: _Epilogue = None,
    running_mean: Any = None,
    running_var: Any = None,
    momentum: float | None = None,
    num_batches_tracked: Any = None,
    bessel: bool = True,
    num_batches_skipped: _Counter = None,
    weighting: _Weighting = None,
) -> tuple[Any, Saved]: ...
def backward(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    out: Any,
    plain: bool = False,
    residual: Any = None,
) -> tuple[Any, ...]: ...
def backward_constant(
    dy: _Values, saved: Saved, weight: _Row, out: Any, plain: bool = False
) -> Any: ...
def double_backward(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    residual: Any,
    ddx: Any,
    ddweight: Any,
    ddbias: Any,
    ddresidual: Any,
    wanted: int,
    plain: bool = False,
) -> tuple[Any, Any, Any, Any, Any]: ...
def double_backward_pilots(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    residual: Any,
    ddx: Any,
    ddweight: Any,
    ddbias: Any,
    ddresidual: Any,
) -> _Float64: ...
def double_backward_reduce(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    residual: Any,
    ddx: Any,
    ddweight: Any,
    ddbias: Any,
    ddresidual: Any,
    pilots: _Float64,
) -> _Float64: ...
def double_backward_apply(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    residual: Any,
    ddx: Any,
    ddweight: Any,
    ddbias: Any,
    ddresidual: Any,
    wanted: int,
    pilots: _Float64,
    sums: _Float64 | None,
    total: _Float64,
    count: float,
) -> tuple[Any, Any, Any, Any, Any]: ...
def rows_forward(
    x: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: float | None,
    out: Any,
    centered: bool,
    plain: bool = False,
    epilogue: _Epilogue = None,
) -> tuple[Any, RowSaved]: ...
def rows_backward(
    dy: Any,
    x: Any,
    saved: RowSaved,
    weight: Any,
    out: Any,
    centered: bool,
    plain: bool = False,
    wants_parameters: bool = True,
    residual: Any = None,
    divided: Any = None,
) -> Any: ...
def rows_collect(
    x: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: float | None,
    out: Any,
    centered: bool,
    epilogue: _Epilogue = None,
) -> tuple[int, _Float64, _Float64, _Float64, str]: ...
def rows_apply(
    x: Any,
    normalized_shape: Any,
    count: float,
    mean: _Float64,
    mean_low: _Float64,
    m2: _Float64,
    weight: Any,
    bias: Any,
    eps: float | None,
    out: Any,
    centered: bool,
    epilogue: _Epilogue = None,
) -> tuple[Any, RowSaved]: ...
def rows_restored(
    x: Any,
    rows: Any,
    normalized_shape: Any,
    eps: float,
    centered: bool,
    weight: Any = None,
    bias: Any = None,
    epilogue: _Epilogue = None,
) -> RowSaved: ...
def check_normalized_shape(normalized_shape: Any) -> tuple[int, ...]: ...
def recompute(x: _Values, saved: Saved, out: Any = None, residual: Any = None) -> Any: ...
def normalize(
    x: _Values,
    mean: _Row,
    var: _Row,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    out: _Array | None,
    epilogue: _Epilogue = None,
    weighting: _Weighting = None,
    keeps: bool = True,
) -> tuple[_Array, Saved]: ...
def normalize_by_running(
    x: _Values,
    running_mean: _Row,
    running_var: _Row,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    out: Any,
    plain: bool = False,
    epilogue: _Epilogue = None,
    weighting: _Weighting = None,
) -> tuple[Any, Saved]: ...
def evaluate(
    x: _Values,
    running_mean: _Row,
    running_var: _Row,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    plain: bool = False,
    epilogue: _Epilogue = None,
    over: bool = False,
) -> Any: ...
def statistics(
    x: _Values, weight: _Row, bias: _Row, eps: float, channel_axis: int, plain: bool = False
) -> tuple[Any, Any]: ...
def moments(
    x: _Values, channel_axis: int, weighting: _Weighting = None
) -> tuple[_Count, _Float64, _Float64]: ...
def collect_stats(
    x: _Values,
    weight: _Row,
    bias: _Row,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float | None,
    num_batches_tracked: _Counter,
    eps: float,
    channel_axis: int,
    out: _Array | None,
    epilogue: _Epilogue = None,
    num_batches_skipped: _Counter = None,
    weighting: _Weighting = None,
) -> tuple[_Count, _Float64, _Float64, _Float64, str]: ...
def apply_norm(
    x: _Values,
    count: _Count,
    mean: _Float64,
    mean_low: _Float64 | None,
    m2: _Float64,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    out: _Array | None,
    epilogue: _Epilogue = None,
    weighting: _Weighting = None,
) -> tuple[_Array, Saved]: ...
def move_running(
    saved: Saved,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float | None,
    num_batches_tracked: _Counter,
    bessel: bool = True,
    num_batches_skipped: _Counter = None,
) -> None: ...
def backward_reduce(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row = None,
    out: _Array | None = None,
    residual: Any = None,
) -> tuple[_Float64, _Float64]: ...
def backward_of_parameters(
    dy: _Values, x: _Values, saved: Saved, plain: bool = False
) -> tuple[Any, Any]: ...
def backward_apply(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    sum_dy: _Values,
    sum_dy_xmu: _Values,
    count: float,
    out: _Array | None,
    residual: Any = None,
) -> Any: ...
def parameter_gradients(
    saved: Saved, weight: Any, sum_dy: _Values, sum_dy_xmu: _Values, like: Any = None
) -> tuple[Any, Any]: ...
def restored(
    x: _Values,
    rows: _Float64,
    eps: float,
    channel_axis: int,
    weight: _Row = None,
    bias: _Row = None,
    epilogue: _Epilogue = None,
    plain: bool = False,
) -> Saved: ...
def cell_forward(
    x: _Values,
    num_groups: int | None,
    weight: _Row,
    bias: _Row,
    eps: float,
    channel_axis: int,
    out: Any,
    plain: bool = False,
    epilogue: _Epilogue = None,
) -> tuple[Any, Saved]: ...
def cell_backward(
    dy: _Values,
    x: _Values,
    saved: Saved,
    weight: _Row,
    out: Any,
    plain: bool = False,
    residual: _Values | None = None,
) -> tuple[Any, ...]: ...
def cell_restored(
    x: _Values,
    num_groups: int | None,
    rows: _Float64,
    eps: float,
    channel_axis: int,
    weight: _Row = None,
    bias: _Row = None,
    epilogue: _Epilogue = None,
) -> Saved: ...
def as_array(x: Any, name: str) -> Any: ...
def inspect(x: Any) -> tuple[tuple[int, ...], str]: ...
def misplaced(array: Any, like: Any) -> str: ...
def is_tracer(x: Any) -> bool: ...
def refuse_tracer(x: Any, name: str) -> None: ...
def suits(
    x: Any, dtype: np.dtype[Any], ranks: tuple[int, ...], channel_axis: int, num_features: int
) -> bool: ...
def is_data_dtype(dtype: np.dtype[Any]) -> bool: ...
def check_eps(eps: float) -> float: ...
def check_momentum(momentum: float) -> float: ...
def check_activation(activation: str | None) -> None: ...
def check_in_place(activation: str | None, negative_slope: float) -> None: ...
def check_negative_slope(negative_slope: float) -> float: ...
def check_axis(channel_axis: Any, rank: int) -> int: ...
def check_count(count: Any, name: str = "num_batches_tracked") -> None: ...
def check_more_than_one(shape: tuple[int, ...], count: int) -> None: ...
def foreign_targets() -> dict[str, object] | None: ...
def check_described(
    function: str,
    arrays: list[tuple[str, tuple[int, ...], str]],
    channel_axis: int,
    eps: float,
    num_groups: int | None = None,
    normalized_shape: Sequence[int] = ...,
) -> None: ...
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
def evaluate_layer(layer: Any, x: Any, epilogue: Any, over: bool) -> Any: ...
def unchanged(
    module: Any,
    elsewhere: tuple[Any, ...],
    within: tuple[Any, ...],
    children: tuple[str, ...],
) -> bool: ...

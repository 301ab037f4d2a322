"""Everything the package computes from one input, as named arrays that can be compared."""

import bnext


def everything(x, dy, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """All results of the four functions, by name, in fresh arrays."""
    options = {"eps": eps, "channel_axis": channel_axis}
    y, saved = bnext.batch_norm_forward(x, weight, bias, **options)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    m = bnext.moments(x, channel_axis=channel_axis)
    inferred = bnext.normalize(x, saved.mean + 0.5, saved.var + 0.5, weight, bias, **options)
    return {
        "y": y, "mean": saved.mean, "m2": saved.m2, "var": saved.var, "rstd": saved.rstd,
        "dx": dx, "dweight": dweight, "dbias": dbias,
        "moments.mean": m.mean, "moments.m2": m.m2, "normalize": inferred,
    }  # fmt: skip

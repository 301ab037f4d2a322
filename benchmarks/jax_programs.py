"""Layers of Flax NNX and Equinox in compiled programs, their own beside bnext's.

    python -m benchmarks.jax_programs [--only PATTERN] [--seconds S] [--json FILE] [--check]

Each row is one program that `jax.jit` has compiled, with `flax.nnx.BatchNorm` and with
`bnext.jax.flax.BatchNorm`, timed in turns: forward and backward of a layer in training, with the
statistics that it moves; and the whole training step of a small convolutional network. Rows of
"examples" are `equinox.nn.LayerNorm` and bnext's of one example, mapped by `jax.vmap` and
differentiated. Times are medians in milliseconds, or the quickest turns where others take
processors ("busy"). A ratio is the other library's time over bnext's. With --check it exits with 1
where a ratio is below its bound, and with 2 if it cannot compare.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.kit.command import checked, command, ended, option, seconds
from benchmarks.kit.tables import versions_of
from bnext.bench.environment import environment
from bnext.bench.load import LoadMeter
from bnext.bench.timing import alternate

LIBRARIES = ("jax", "jaxlib", "flax", "equinox")
FEWEST, FEWEST_BUSY = 9, 15  # turns of each side


class Case(NamedTuple):
    """A program, and the least ratio that is promised."""

    name: str
    shape: tuple
    dtype: str
    least: float

    @property
    def library(self):
        """Whose layers are compared with bnext's."""
        return "equinox" if self.name == "examples" else "flax"


CASES = (
    Case("layer", (32, 56, 56, 256), "float32", 2.0),
    Case("layer", (32, 112, 112, 64), "float32", 2.0),
    Case("layer", (32, 56, 56, 256), "bfloat16", 2.5),
    Case("layer", (32, 112, 112, 64), "bfloat16", 2.5),
    Case("layer", (64, 20), "float32", 1 / 1.2),
    Case("network", (32, 32, 32, 3), "float32", 1.0),
    Case("network", (32, 32, 32, 3), "bfloat16", 1.0),
    Case("examples", (64, 20), "float32", 1.0),
    Case("examples", (512, 64), "float32", 1.0),
    Case("examples", (4096, 768), "float32", 1.0),
)


def network(nnx, norm, dtype):
    """Six convolutions, each with a norm and a ReLU, and a classifier."""
    import jax

    class Net(nnx.Module):
        def __init__(self, rngs):
            widths = (3, 32, 32, 64, 64, 128, 128)
            strides = (1, 1, 2, 1, 2, 1)
            self.convs = nnx.List(
                nnx.Conv(
                    before, after, (3, 3), strides, use_bias=False, dtype=dtype, rngs=rngs
                )
                for before, after, strides in zip(widths, widths[1:], strides, strict=False)
            )  # fmt: skip
            self.norms = nnx.List(norm(width, dtype=dtype, rngs=rngs) for width in widths[1:])
            self.head = nnx.Linear(widths[-1], 10, rngs=rngs)

        def __call__(self, x):
            for conv, layer in zip(self.convs, self.norms, strict=True):
                x = jax.nn.relu(layer(conv(x)))
            return self.head(x.mean((1, 2)))

    return Net(nnx.Rngs(0))


def drawn(case):
    """x and dy of a case."""
    import jax

    keys = map(jax.random.key, (1, 2))
    return [jax.random.normal(key, case.shape).astype(case.dtype) for key in keys]


def step_of_layer(norm, case):
    """The call of a compiled program: y, all gradients and the statistics that have moved."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    layer = norm(case.shape[-1], dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0))
    definition, parameters, rest = nnx.split(layer, nnx.Param, ...)
    x, dy = drawn(case)

    @jax.jit
    def step(parameters, rest, x, dy):
        def forward(parameters, x):
            layer = nnx.merge(definition, parameters, rest, copy=True)
            y = layer(x)
            return y, nnx.split(layer, nnx.Param, ...)[2]

        y, pull_back, moved = jax.vjp(forward, parameters, x, has_aux=True)
        return y, pull_back(dy), moved

    return lambda: jax.block_until_ready(step(parameters, rest, x, dy))


def step_of_network(norm, case):
    """The call of a compiled training step, which carries on from the step before."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model = network(nnx, norm, jnp.dtype(case.dtype))
    definition, parameters, rest = nnx.split(model, nnx.Param, ...)
    images = jax.random.normal(jax.random.key(1), case.shape)
    labels = jnp.arange(case.shape[0]) % 10

    @jax.jit
    def step(parameters, rest):
        def loss(parameters):
            model = nnx.merge(definition, parameters, rest, copy=True)
            logits = jax.nn.log_softmax(model(images))
            value = -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()
            return value, nnx.split(model, nnx.Param, ...)[2]

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updated = jax.tree.map(lambda p, g: p - 0.01 * g, parameters, gradients)
        return value, updated, moved

    state = [parameters, rest]

    def call():
        value, *state[:] = jax.block_until_ready(step(*state))
        return value

    return call


def step_of_examples(norm, case):
    """The call of a compiled program: y and all gradients of a layer that sees one example."""
    import jax

    layer = norm(case.shape[-1])
    x, dy = drawn(case)

    @jax.jit
    def step(layer, x, dy):
        y, pull_back = jax.vjp(lambda layer, x: jax.vmap(layer)(x), layer, x)
        return y, pull_back(dy)

    return lambda: jax.block_until_ready(step(layer, x, dy))


STEPS = {"layer": step_of_layer, "network": step_of_network, "examples": step_of_examples}


def sides():
    """The layers of each library, bnext's and its own; None without these."""
    try:
        import equinox
        from flax import nnx

        import bnext.jax.equinox
        import bnext.jax.flax
    except ImportError as error:
        print(f"benchmarks.jax_programs: {error}", file=sys.stderr)
        return None
    return {
        "flax": {"bnext": bnext.jax.flax.BatchNorm, "other": nnx.BatchNorm},
        "equinox": {"bnext": bnext.jax.equinox.LayerNorm, "other": equinox.nn.LayerNorm},
    }


def measured(case, layers, seconds):
    """A row: seconds of both sides, and their ratio."""
    step = STEPS[case.name]
    calls = {name: step(norm, case) for name, norm in layers[case.library].items()}
    for call in calls.values():
        call()  # compiles
    meter = LoadMeter()
    timings = alternate(calls, seconds, fewest=FEWEST)
    busy = meter.read().is_busy
    if busy:  # the quickest of more turns: most have pauses
        timings = alternate(calls, seconds, fewest=FEWEST_BUSY)
    typical = {name: each.best if busy else each.median for name, each in timings.items()}
    return {
        "name": case.name, "shape": case.shape, "dtype": case.dtype, "least": case.least,
        "library": case.library, "busy": busy, **typical,
        "ratio": typical["other"] / typical["bnext"],
        "timings": {name: vars(timing) for name, timing in timings.items()},
    }  # fmt: skip


def line(row):
    """A row of the table."""
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{row['name']:8} {shape:14} {row['dtype']:9} {1e3 * row['bnext']:10.3f} "
        f"{1e3 * row['other']:10.3f} {row['ratio']:7.2f} {row['least']:7.2f}"
        f"{'  busy' if row['busy'] else ''}"
    )


def heading(found):
    """The libraries and the machine: two lines."""
    machine = f"{found['processor']}, {found['isa']}, {found['processors']} processors"
    return (
        f"{versions_of(found)}\n{machine}\n"
        f"{'program':8} {'shape':14} {'dtype':9} {'bnext ms':>10} {'other ms':>10} "
        f"{'ratio':>7} {'bound':>7}"
    )


def environment_with_jax():
    """The environment, with the versions of the libraries that are compared."""
    found = environment(0)
    found.pop("threads")
    versions = {name: version for name, version in found["versions"].items() if name != "torch"}
    found["versions"] = versions | {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found


@command(
    "benchmarks.jax_programs",
    __doc__,
    option("--only", default="", metavar="PATTERN", help="of lines of the table"),
    seconds(10.0, "row"),
    option("--json", type=Path, metavar="FILE", help="a file for rows and versions"),
    checked(),
)
def main(options):
    layers = sides()
    if layers is None:
        return 2
    found = environment_with_jax()
    print(heading(found), flush=True)
    rows = []
    for case in CASES:
        terms = f"{case.name} {'x'.join(map(str, case.shape))} {case.dtype}"
        if re.search(options.only, terms):
            rows.append(measured(case, layers, options.seconds))
            print(line(rows[-1]), flush=True)
    if options.json:
        text = json.dumps({"environment": found, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return ended(options, [line(row) for row in rows if row["ratio"] < row["least"]])


if __name__ == "__main__":
    sys.exit(main())

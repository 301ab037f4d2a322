"""The peers of bnext in the suite, under their names in the results."""

import contextlib
import importlib

import bnext
from benchmarks import onednn, shared_libraries
from benchmarks.shared_libraries import UnavailableError
from bnext.bench.cases import EPS
from bnext.bench.libraries import LIBRARIES, Copier, as_tensor, import_torch

# In the order of the tables.
TITLES = {
    "torch": "PyTorch",
    "torch_no_grad": "PyTorch, no_grad",
    "compile": "torch.compile",
    "onednn": "oneDNN",
    "onednn_best": "oneDNN, best layout",
    "numpy": "NumPy",
}


def torch_calls(data):
    """PyTorch's operators, or the reason for their absence."""
    _torch()
    return LIBRARIES["torch"](data)


def _torch():
    torch = import_torch()
    if torch is None:
        raise UnavailableError("PyTorch is not installed")
    return torch


def bnext_layers(data):
    """This package's layers, in training and in evaluation mode, with initial parameters."""
    kind = getattr(bnext, f"BatchNorm{max(data.x.ndim - 2, 1)}d")
    return _layer_calls(kind(data.x.shape[1], EPS), kind(data.x.shape[1], EPS), data.x)


def torch_layers(data):
    """PyTorch's layers, recording for backward, like this package's."""
    kind = getattr(_torch().nn, f"BatchNorm{max(data.x.ndim - 2, 1)}d")
    x = as_tensor(data.x)
    return _layer_calls(kind(x.shape[1], EPS), kind(x.shape[1], EPS), x)


def torch_layers_no_grad(data):
    """PyTorch's layers without recording."""
    torch = _torch()

    def without(call):
        def quietly():
            with torch.no_grad():
                return call()

        return quietly

    return {key: without(call) for key, call in torch_layers(data).items()}


def _layer_calls(training, still, x):
    still.eval()
    return {
        ("layer", "fresh"): lambda: training(x),
        ("layer inference", "fresh"): lambda: still(x),
    }


def operators(torch):
    """PyTorch's operators as functions for torch.compile: forward, backward, inference."""
    aten = torch.ops.aten

    def forward(x, weight, bias):
        return aten.native_batch_norm(x, weight, bias, None, None, True, 0.1, EPS)

    def backward(dy, x, weight, mean, rstd):
        return aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, rstd, True, EPS, [True, True, True]
        )

    def inference(x, mean, var, weight, bias):
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.1, EPS)

    return forward, backward, inference


def compile_calls(data):
    """PyTorch's operators through torch.compile, which allocates its outputs.

    Compiled here, once for each case, with static shapes, outside the time.
    """
    torch = _torch()
    x, dy, weight, bias, mean, var = map(
        as_tensor, (data.x, data.dy, data.weight, data.bias, data.mean, data.var)
    )
    torch.compiler.reset()
    forward, backward, inference = operators(torch)
    _, saved_mean, saved_rstd = forward(x, weight, bias)
    arguments = {
        forward: (x, weight, bias),
        backward: (dy, x, weight, saved_mean, saved_rstd),
        inference: (x, mean, var, weight, bias),
    }
    calls = {}
    for function, given in arguments.items():
        compiled = torch.compile(function, dynamic=False)
        with _compiling():
            compiled(*given)
        for pages in ("fresh", "warm"):
            calls[function.__name__, pages] = lambda f=compiled, given=given: f(*given)
    return calls


@contextlib.contextmanager
def _compiling():
    """Any error of a compiler is a reason to leave it out."""
    try:
        yield
    except Exception as error:
        raise UnavailableError(f"torch.compile: {str(error).strip().splitlines()[0]}") from error


def chain_calls(data, *, residual, relu, compiled=False):
    """PyTorch's batch norm, addition and ReLU one after the other, and autograd through them.

    Forward records for backward, as in training. `data.dy` stands for the residual too. With
    `compiled`, torch.compile fuses the chain, here and once, outside the time.
    """
    torch = _torch()
    x, dy, weight, bias = map(as_tensor, (data.x, data.dy, data.weight, data.bias))
    inputs = [x, weight, bias, *([as_tensor(data.dy)] if residual else [])]
    for tensor in inputs:
        tensor.requires_grad_()

    def chain(x, weight, bias, residual=None):
        z = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)
        if residual is not None:
            z = z + residual
        return torch.relu(z) if relu else z

    def backward():
        return torch.autograd.grad(y, inputs, dy, retain_graph=True)

    if not compiled:
        y = chain(*inputs)
        return {"forward": lambda: chain(*inputs), "backward": backward}
    torch.compiler.reset()
    function = torch.compile(chain, dynamic=False)
    with _compiling(), _kept_buffers():
        y = function(*inputs)
        backward()
    return {"forward": lambda: function(*inputs), "backward": backward}


def _kept_buffers():
    """Compile backward passes that may run again: they leave what forward kept for them."""
    config = importlib.import_module("torch._functorch.config")
    return config.patch(donated_buffer=False)


class BestCopier(Copier):
    """The best of NumPy's copy, `memcpy` by pieces and streaming stores, with all threads."""

    def calls(self, data):
        """The copies in Python, and the copies of cpp/copy.cpp where it can be built."""
        case = data.case
        source, target = (case.in_memory_order(array) for array in (data.x, data.out))
        try:
            library = shared_libraries.machine()
        except UnavailableError:
            return super().calls(data)
        given = (target.ctypes.data, source.ctypes.data, case.nbytes, self._threads)
        calls = {"copy with memcpy": lambda: library.copy_with_memcpy(*given)}
        if case.nbytes < self.SMALLEST_PIECE:  # one thread may be quicker, and no stream
            return {**calls, **super().calls(data)}
        return {**calls, "copy, streaming": lambda: library.copy_streaming(*given)}


FUNCTIONS = {
    "bnext": LIBRARIES["bnext"],
    "torch": torch_calls,
    "compile": compile_calls,
    "onednn": onednn.onednn_calls,
    "onednn_best": onednn.best_calls,
    "numpy": LIBRARIES["numpy"],
}
LAYERS = {"bnext": bnext_layers, "torch": torch_layers, "torch_no_grad": torch_layers_no_grad}


def prepared(name, operations, skipped, chosen):
    """The function that prepares a peer's calls; a refusal leaves the peer out, with a note.

    Refusals go to `skipped`, and oneDNN's best layout for each case and operation to `chosen`.
    """
    prepare = (LAYERS if operations[0].startswith("layer") else FUNCTIONS)[name]

    def carefully(data):
        about = {"case": data.case.name, "dtype": data.case.dtype, "peer": name}
        about["channels_last"] = data.case.channels_last
        try:
            if name == "onednn_best":
                return prepare(
                    data,
                    lambda operation, layout, code: chosen.append(
                        {**about, "operation": operation, "layout": layout, "code": code}
                    ),
                )
            return prepare(data)
        except UnavailableError as reason:
            if {**about, "reason": str(reason)} not in skipped:
                skipped.append({**about, "reason": str(reason)})
            return {}

    return carefully

"""Tools that look layers up by their exact class, and find none of bnext's unless told.

Each has tables, where bnext's classes are entered beside PyTorch's, or a function, which is given
another behind it. A tool is told when it is imported, be it before bnext or after; none is imported
here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial, wraps
from types import ModuleType
from typing import Any

import torch

from bnext.torch.classes import WHEN_MADE, ConversionWarning, counterparts
from bnext.torch.conversion import as_torch, check_bare, convert, revert
from bnext.torch.copies import shallow_copy_of_tree
from bnext.torch.imports import is_being_imported, when_imported
from bnext.torch.kernel_module import KernelModule
from bnext.torch.modules import Forward
from bnext.torch.patterns import module_of
from bnext.torch.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bnext.torch.sync import SyncBatchNorm

__all__ = ["tell"]

Entry = Callable[[Any, type, type], None]


# --- tables: each function enters one class beside the one that it stands for ---------------------


def _beside(name: str, module: Any, ours: type, theirs: type) -> None:
    table = getattr(module, name)
    if theirs in table:
        table.setdefault(ours, table[theirs])


def _opacus(opacus: Any, ours: type, theirs: type) -> None:
    validators, fixers = opacus.ModuleValidator.VALIDATORS, opacus.ModuleValidator.FIXERS

    def validate(module: Any) -> Any:
        """Report a layer as one of the nearest class that is reported: none may pass unseen."""
        for kind in theirs.__mro__:
            if kind in validators:
                return validators[kind](as_torch(module))
        return []

    def fix(module: Any, **named: Any) -> Any:
        """Replace a layer as one of exactly that class, since others do more than normalize."""
        if theirs not in fixers:
            return module
        fixed = fixers[theirs](as_torch(module), **named)
        activation, negative_slope = getattr(module, "_activation", (None, 0.0))
        if activation is None:
            return fixed
        return torch.nn.Sequential(fixed, module_of(activation, negative_slope))

    validators.setdefault(ours, validate)
    fixers.setdefault(ours, fix)


def _fuse_modules(mappings: Any, ours: type, theirs: type) -> None:
    table = mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    for kinds, method in list(table.items()):
        if theirs in kinds:
            known = tuple(ours if kind is theirs else kind for kind in kinds)
            table.setdefault(known, partial(_fuse, method))


def _fuse(method: Any, is_qat: bool, *modules: Any) -> Any:
    """Fuse PyTorch's layers: what comes of it looks at their classes as well."""
    if is_qat:
        _check_trains(modules)
    return method(is_qat, *(revert(module) for module in modules))


def _check_trains(modules: Iterable[Any]) -> None:
    """ValueError for a frozen layer, which a layer that trains and is quantized cannot hold."""
    if any("_frozen" in vars(module) for module in modules):
        raise ValueError(
            "model: expected layers that train, got a frozen one: call bnext.torch.unfreeze first, "
            "and model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats) once it is prepared"
        )


# --- functions: each is called in place of a tool's, its first argument ---------------------------


def _fx_fusion(matches: Any, pattern: Any, node: Any, modules: Any) -> Any:
    if matches(pattern, node, modules):
        return True
    names = [each.target for each in (node, *node.args[:1]) if hasattr(each, "target")]
    ours = [name for name in names if isinstance(modules.get(name), Forward)]
    if any(modules[name]._activation[0] is not None for name in ours):
        return False  # what would take the place of both knows no activation
    exchanged = modules | {name: as_torch(modules[name]) for name in ours}
    return bool(ours) and matches(pattern, node, exchanged)


def _fx_quantization(fuse: Any, graph: Any, *arguments: Any, **named: Any) -> Any:
    """Fuse, and then quantize, a graph with PyTorch's layers; the model keeps its own."""
    modules = list(graph.named_modules())
    for name, module in modules:
        if name and isinstance(module, KernelModule):
            graph.set_submodule(name, module.__prepare_scriptable__())
    try:
        return fuse(graph, *arguments, **named)
    except AssertionError:  # convolution and normalization are not in one mode
        _check_trains(module for _, module in modules)
        raise


def _quantized(swap: Any, module: Any, mapping: Any, *arguments: Any, **named: Any) -> Any:
    """Quantize a layer by itself, if PyTorch has one like it: an activation would be lost."""
    if (
        isinstance(module, KernelModule)
        and type(module) in mapping
        and getattr(module, "qconfig", None) is not None
    ):
        check_bare(module)
    return swap(module, mapping, *arguments, **named)


def _synchronized(theirs: Any, module: Any, process_group: Any = None) -> Any:
    """Keep a layer bnext's where PyTorch would put a new one of its own in its place."""
    if isinstance(module, Forward):
        return convert(module, sync=True if process_group is None else process_group)
    return theirs(module, process_group)


def _split(theirs: Any, module: Any, *arguments: Any, **named: Any) -> Any:
    if isinstance(module, Forward):
        check_bare(module)
    split = theirs(module, *arguments, **named)
    return convert(split) if isinstance(module, Forward) else split


def _exported(verify: Any, program: Any) -> Any:
    """Have a graph of torch.export say PyTorch's class where its operators come from bnext's.

    Quantizers find the operators of a layer by it.
    """
    classes = {
        _name_of(ours): theirs
        for ours, theirs in counterparts()
        if _name_of(ours) != _name_of(theirs)  # as of a class that is made for a user's
    }
    for module in program.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                _rename(node, classes)
    return verify(program)


# Operators of a layer; others of it are what an activation or a residual adds.
_OF_LAYERS = ("add_", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")


def _rename(node: torch.fx.Node, classes: dict[str, type]) -> None:
    stack = node.meta.get("nn_module_stack") or {}
    if not any(kind in classes for _, kind in stack.values()):
        return
    node.meta["nn_module_stack"] = {
        key: (path, _name_of(classes[kind]) if kind in classes else kind)
        for key, (path, kind) in stack.items()
    }
    sources = node.meta.get("source_fn_stack")
    innermost = classes.get(next(reversed(stack.values()))[1])
    if sources and innermost is not None and getattr(node.target, "_opname", "") in _OF_LAYERS:
        node.meta["source_fn_stack"] = [*sources[:-1], (sources[-1][0], innermost)]


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _instead(name: str, ours: Callable[..., Any], module: ModuleType) -> None:
    """Put a function in the place of a tool's, also where the package of its module has it."""
    theirs = getattr(module, name)
    made = wraps(theirs)(partial(ours, theirs))
    for each in (module, sys.modules.get(module.__name__.rpartition(".")[0])):
        if getattr(each, name, None) is theirs:
            setattr(each, name, made)


def _pytorch_sync(batchnorm: Any) -> None:
    """Also what Lightning calls, with ``sync_batchnorm=True``."""
    theirs = batchnorm.SyncBatchNorm.convert_sync_batchnorm.__func__

    @wraps(theirs)
    def convert_sync_batchnorm(cls: Any, *arguments: Any, **named: Any) -> Any:
        return _synchronized(partial(theirs, cls), *arguments, **named)

    batchnorm.SyncBatchNorm.convert_sync_batchnorm = classmethod(convert_sync_batchnorm)


def _scripting(theirs: Any, model: Any, *arguments: Any, **named: Any) -> Any:
    """Prepare a copy: PyTorch puts what is to be compiled into the model that it is given."""
    if isinstance(model, torch.nn.Module) and any(map(_is_compiled_otherwise, model.modules())):
        model = shallow_copy_of_tree(model)
    return theirs(model, *arguments, **named)


def _is_compiled_otherwise(module: Any) -> bool:
    """Whether it gives TorchScript another module of bnext's making in its place."""
    prepare = getattr(type(module), "__prepare_scriptable__", None)
    return getattr(prepare, "__module__", "").startswith("bnext.torch.")


def _mkldnn(mkldnn: Any) -> None:
    theirs = mkldnn.MkldnnBatchNorm.__init__

    @wraps(theirs)
    def begin(self: Any, dense_module: Any) -> None:
        check_bare(dense_module)
        theirs(self, dense_module)

    mkldnn.MkldnnBatchNorm.__init__ = begin


def _fvcore(precise_bn: Any) -> None:
    precise_bn.BN_MODULE_TYPES = (*precise_bn.BN_MODULE_TYPES, SyncBatchNorm)


# --- who is told, and when ------------------------------------------------------------------------

TABLES: list[tuple[str, Entry]] = [
    ("thop.profile", partial(_beside, "register_hooks")),
    ("ptflops.pytorch_ops", partial(_beside, "MODULES_MAPPING")),
    ("opacus.validators", _opacus),
    ("torch.ao.quantization.fuser_method_mappings", _fuse_modules),
    (
        "torch.ao.quantization.quantization_mappings",
        partial(_beside, "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS"),
    ),
]
# Layers of bnext's that PyTorch has not, and the class that they are nearest to where layers are
# counted or refused.
NEAREST: list[tuple[type, type]] = [
    (BatchRenorm1d, torch.nn.BatchNorm1d),
    (BatchRenorm2d, torch.nn.BatchNorm2d),
    (BatchRenorm3d, torch.nn.BatchNorm3d),
]
KNOW_NEAREST = ("thop.profile", "ptflops.pytorch_ops", "opacus.validators")
FUNCTIONS: list[tuple[str, Callable[[Any], None]]] = [
    ("torch.jit._script", partial(_instead, "call_prepare_scriptable_func", _scripting)),
    ("torch.nn.modules.batchnorm", _pytorch_sync),
    (
        "torch.fx.experimental.optimization",
        partial(_instead, "matches_module_pattern", _fx_fusion),
    ),
    ("torch.ao.quantization.quantize", partial(_instead, "swap_module", _quantized)),
    ("torch.ao.quantization.quantize_fx", partial(_instead, "fuse", _fx_quantization)),
    ("torch.export._trace", partial(_instead, "_verify_nn_module_stack", _exported)),
    ("torch.utils.mkldnn", _mkldnn),
    ("fvcore.nn.precise_bn", _fvcore),
    ("timm.layers.norm_act", partial(_instead, "convert_sync_batchnorm", _synchronized)),
    ("timm.layers.split_batchnorm", partial(_instead, "convert_splitbn_model", _split)),
]


def tell() -> None:
    """Have every tool know bnext's classes, once it is imported."""
    for name, function in FUNCTIONS:
        when_imported(name, partial(_attempt, name, function))
    for name, enter in TABLES:
        when_imported(name, partial(_enter_all, name, enter))
    WHEN_MADE.append(_enter_made)


def _enter_all(name: str, enter: Entry, module: ModuleType) -> None:
    for ours, theirs in (*counterparts(), *(NEAREST if name in KNOW_NEAREST else ())):
        _attempt(name, enter, module, ours, theirs)


def _enter_made(ours: type, theirs: type) -> None:
    for name, enter in TABLES:
        module = sys.modules.get(name)
        if module is not None and not is_being_imported(module):
            _attempt(name, enter, module, ours, theirs)


_UNKNOWN: set[str] = set()


def _attempt(name: str, function: Callable[..., None], *arguments: Any) -> None:
    if name in _UNKNOWN:
        return
    try:
        function(*arguments)
    except (AttributeError, TypeError, KeyError) as error:
        _UNKNOWN.add(name)
        warnings.warn(
            f"bnext.torch does not know this version of {name} ({error}), which may pass over "
            "layers of bnext's: call bnext.torch.revert(model) before it is used",
            ConversionWarning,
            stacklevel=3,
        )

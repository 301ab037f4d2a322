"""Functions made of graphs of `torch.fx`: for compilers, which follow them, and for eager calls."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

__all__ = ["eager_function_of", "function_of", "module_of"]

_IS_MODULE = "bnext_is_module"  # in the notes on a node


def module_of(graph: fx.Graph, name: str) -> fx.Node:
    """Add a descendant of the graph's module to it, as a value."""
    node = graph.get_attr(name)
    node.meta[_IS_MODULE] = True
    return node


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """Make a function of a graph; its first argument is the module."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<bnext.torch: fused forward>", "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function


def eager_function_of(graph: fx.Graph) -> Callable[..., Any]:
    """Do `function_of`, for calls that nothing traces; the graph is changed.

    Descendants of the module are found in the dicts of children. As attributes, PyTorch looks each
    up by a function in Python, which takes 0.6 us, and 2 us between the convolutions of a network,
    where it is cold.
    """
    for node in list(graph.nodes):
        if node.op == "call_module":
            with graph.inserting_before(node):
                module = _found(graph, str(node.target))
                call = graph.call_method("__call__", (module, *node.args), node.kwargs)
        elif node.op == "get_attr" and _IS_MODULE in node.meta:
            with graph.inserting_before(node):
                call = _found(graph, str(node.target))
        else:
            continue
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    return function_of(graph)


def _found(graph: fx.Graph, target: str) -> fx.Node:
    """Add a descendant of the module to a graph."""
    children = graph.get_attr("_modules")
    first, *rest = target.split(".")
    found = graph.call_function(operator.getitem, (children, first))
    for name in rest:
        children = graph.call_function(getattr, (found, "_modules"))
        found = graph.call_function(operator.getitem, (children, name))
    return found

"""What compilers are told: the revision of the code that their graphs are made by."""

import os
import subprocess
import sys

from .support import COMPILED, bnext, torch

revision, revision_of = bnext.torch.compilers.revision, bnext.torch.compilers.revision_of
pytestmark = COMPILED


def test_every_change_is_a_revision(tmp_path):
    seen = set()
    (tmp_path / "in").mkdir()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("in/a.py", "2"), ("c.txt", "3")):
        (tmp_path / name).write_text(text)
        seen.add(revision_of(tmp_path))
        assert revision_of(tmp_path) in seen
    assert len(seen) == 3  # the last is no code
    (tmp_path / "a.py").rename(tmp_path / "d.py")
    assert revision_of(tmp_path) not in seen


def test_graphs_have_the_revision():
    """By this caches tell the code of another revision, which they would run in place of ours."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    for activation in (None, "relu"):
        layer = bnext.torch.BatchNorm1d(3, activation=activation)
        torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(7, 3))
    for graph in graphs:
        (call,) = (node for node in graph.graph.nodes if "batch_norm_of_layer" in str(node.target))
        assert revision() in call.args
    assert len(graphs) == 2


PROGRAM = """
import sys
import torch
import bnext.torch
from bnext.torch import compilers
from torch._dynamo.utils import counters

compilers.revision_of = lambda folder: sys.argv[1]
torch.manual_seed(0)
layer = torch.compile(bnext.torch.BatchNorm1d(3))
layer(torch.randn(7, 3)).square().sum().backward()
print(counters["aot_autograd"]["autograd_cache_hit"])
"""


def test_caches_tell_revisions(tmp_path):
    """A second process finds the first one's code, one of another revision does not."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, name], env=environment, check=True, text=True,
            capture_output=True,
        ).stdout.split()
        for name in ("first", "first", "second")
    ]  # fmt: skip
    assert hits == [["0"], ["1"], ["0"]]

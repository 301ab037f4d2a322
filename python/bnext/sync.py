"""Groups: the statistics of one batch that is held by many threads or processes.

A group is given to a layer (``BatchNorm2d(64, group=group)``) or to a call. Every member then
normalizes its shard of the batch by the statistics of the whole batch, with one exchange of O(C)
numbers in the forward pass and one in the backward pass. Shards may be of any size, also empty.

`ThreadGroup` is for threads of this process, `MPIGroup` and `TorchDistributedGroup` for processes;
these two import their engine when they are made. With any of them, shards are arrays of NumPy, of
another library on the CPU, or of one on a GPU, as calls without a group take them.
"""

from bnext.groups.exchange import GroupError, Header, Merged
from bnext.groups.group import Group
from bnext.groups.mpi import MPIGroup
from bnext.groups.saved import SyncSaved
from bnext.groups.threads import ThreadGroup
from bnext.groups.torch_distributed import TorchDistributedGroup
from bnext.split_cells import SplitSaved
from bnext.split_rows import SplitRowSaved

__all__ = [
    "Group",
    "GroupError",
    "Header",
    "MPIGroup",
    "Merged",
    "SplitRowSaved",
    "SplitSaved",
    "SyncSaved",
    "ThreadGroup",
    "TorchDistributedGroup",
]

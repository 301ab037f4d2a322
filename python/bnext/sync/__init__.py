"""Groups: the statistics of one batch that is held by many threads or processes.

A group is given to a layer (``BatchNorm2d(64, group=group)``) or to a call. Every member then
normalizes its shard of the batch by the statistics of the whole batch, with one exchange of O(C)
numbers in the forward pass and one in the backward pass. Shards may be of any size, also empty.
"""

from bnext.sync.group import Group, GroupError, Header, Merged
from bnext.sync.phases import SyncSaved
from bnext.sync.threads import ThreadGroup

__all__ = ["Group", "GroupError", "Header", "Merged", "SyncSaved", "ThreadGroup"]

"""Groups: the members that hold the parts of a batch, and how its statistics become one.

group              the protocol: a member's part in a call; `ALONE`
exchange           headers of calls, what members merge, `GroupError`
saved              what a shard's forward pass keeps
visits             layers that are in another group for a while
threads            threads of one process
processes          what groups of processes share: roll_call, store_board, communicators
mpi, torch_distributed
                   processes, over MPI and over torch.distributed

`bnext.sync` has the names for users.
"""

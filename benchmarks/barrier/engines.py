"""The engines of processes: their collectives alone, and what one would write with them.

Each has bnext's group, and the same calls:

- `blocking`: the engine's own sum over all ranks, as its users call it;
- `polled`: the same sum, started and then asked for in a loop, as bnext does it to keep its
  time-outs;
- `pickled`, `packed`: the rows of all ranks, as objects and as one array of float64;
- `share`: the value of rank 0, for all; `rest`: wait for all without using the processor.
"""

import sys
import time

import numpy as np

import bnext

REST = 0.001  # seconds between looks, for ranks that have nothing to do


class MPI:
    """MPI by mpi4py, under mpiexec."""

    def __init__(self):
        from mpi4py import MPI

        self._in_place = MPI.IN_PLACE
        self._comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        self.group = bnext.sync.MPIGroup(self._comm)
        self.version = " ".join(MPI.Get_library_version().split("\n")[0].rstrip("\0").split())

    def blocking(self, buffer):
        self._comm.Allreduce(self._in_place, buffer)

    def polled(self, buffer):
        request = self._comm.Iallreduce(self._in_place, buffer)
        while not request.Test():
            pass

    def pickled(self, row):
        return self._comm.allgather(row)

    def packed(self, row):
        rows = np.empty((self.size, row.size))
        self._comm.Allgather(row, rows)
        return rows

    def share(self, value):
        return self._comm.bcast(value)

    def rest(self):
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(REST)

    def close(self):
        pass


class Gloo:
    """torch.distributed with gloo, over the loopback device."""

    def __init__(self):
        import torch
        import torch.distributed as dist

        store, rank, size = sys.argv[-3:]
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size)
        )
        self._torch, self._dist = torch, dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = bnext.sync.TorchDistributedGroup()
        self.version = f"gloo of PyTorch {torch.__version__}"

    def blocking(self, buffer):
        self._dist.all_reduce(self._torch.from_numpy(buffer))

    def polled(self, buffer):
        request = self._dist.all_reduce(self._torch.from_numpy(buffer), async_op=True)
        while not request.is_completed():
            pass
        request.wait()

    def pickled(self, row):
        rows = [None] * self.size
        self._dist.all_gather_object(rows, row)
        return rows

    def packed(self, row):
        rows = np.empty((self.size, row.size))
        into = [self._torch.from_numpy(each) for each in rows]
        self._dist.all_gather(into, self._torch.from_numpy(row))
        return rows

    def share(self, value):
        values = [value]
        self._dist.broadcast_object_list(values, src=0)
        return values[0]

    def rest(self):
        request = self._dist.barrier(async_op=True)
        while not request.is_completed():
            time.sleep(REST)
        request.wait()

    def close(self):
        self._dist.destroy_process_group()


ENGINES = {"mpi": MPI, "gloo": Gloo}

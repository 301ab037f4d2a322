"""What the barrier costs ResNet-50 on 8 to 16,384 ranks, under assumptions that are spelled out.

Inside a machine an engine has the hops that were measured. Between machines they are assumed, and
so is how long a rank computes. MPI sums inside each machine, then among one rank of each, and hands
the result out, which takes as long as the sum inside; gloo's ring goes through all ranks, at the
pace of its slowest hop.
"""

from dataclasses import asdict, dataclass, field, fields, replace

from benchmarks.barrier.cases import KINDS, LAYERS
from benchmarks.barrier.model import Hop, cheaper, messages, ring

RANKS = tuple(2**k for k in range(3, 15))
FEW_RANKS = (8, 64, 512, 4096, 16384)
BARRIERS = len(KINDS) * sum(LAYERS.values())  # in a step
FORWARD_GMACS = 4.1  # of ResNet-50 for an image of 224 x 224


def _assumed(default, text):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Assumptions:
    """What cannot be measured on one machine without a GPU; options of the command line."""

    latency_us: float = _assumed(2.0, "between machines")
    bandwidth_gbs: float = _assumed(25.0, "between machines")
    tcp_latency_us: float = _assumed(30.0, "between machines, pessimistic")
    tcp_bandwidth_gbs: float = _assumed(1.25, "between machines, pessimistic")
    ranks_per_node: int = _assumed(8, "on each machine")
    tflops: float = _assumed(150.0, "sustained by a GPU-like rank")
    images: int = _assumed(32, "of each GPU-like rank in a step")
    cpu_tflops: float = _assumed(1.0, "sustained by a CPU-like rank")
    cpu_images: int = _assumed(32, "of each CPU-like rank in a step")

    @classmethod
    def of(cls, stored, **given):
        """Those of stored results, but for what is given."""
        known = {each.name for each in fields(cls)}
        found = cls(**{name: value for name, value in stored.items() if name in known})
        return replace(found, **{name: v for name, v in given.items() if v is not None})

    def as_dict(self):
        return asdict(self)

    @property
    def compute_seconds(self):
        """Of a step, by kind of rank: forward, and twice as much backward."""
        image = 3 * 2 * FORWARD_GMACS * 1e9
        return {
            "GPU-like": image * self.images / (self.tflops * 1e12),
            "CPU-like": image * self.cpu_images / (self.cpu_tflops * 1e12),
        }


@dataclass(frozen=True)
class Setup:
    """An engine on machines with a network between them, and the sums that bnext needs."""

    engine: object  # model.Engine
    network: str
    hop: Hop  # between machines
    per_node: int
    sent: dict  # bytes of the sums, by channels and kind

    @property
    def title(self):
        return f"{NAMES[self.engine.name]}, {self.network}"

    def allreduce_seconds(self, ranks, nbytes):
        """One sum over all ranks."""
        engine = self.engine
        if ranks <= self.per_node:
            return engine.allreduce_seconds(ranks, nbytes)
        if engine.name == "gloo":
            inside = engine.small
            latency = max(inside.latency, self.hop.latency)
            return ring(ranks, nbytes, Hop(latency, max(inside.per_byte, self.hop.per_byte)))
        inside = 2 * engine.allreduce_seconds(self.per_node, nbytes)
        return inside + cheaper(-(-ranks // self.per_node), nbytes, self.hop, self.hop)

    def layer_seconds(self, ranks, channels):
        """Both exchanges of a layer in a step; one rank needs none."""
        if ranks == 1:
            return 0.0
        return sum(
            self.engine.own_seconds(kind, channels)
            + sum(self.allreduce_seconds(ranks, nbytes) for nbytes in self.sent[channels][kind])
            for kind in KINDS
        )

    def step_seconds(self, ranks):
        """Those of the 53 layers."""
        return sum(count * self.layer_seconds(ranks, c) for c, count in LAYERS.items())


NAMES = {"mpi": "MPI", "gloo": "gloo"}


def setups(document, engines, assumptions):
    """MPI on the network that is assumed, and on the pessimistic one; gloo on the latter."""
    a = assumptions
    addition = document.get("addition_seconds_per_byte") or 0.0
    fast = Hop(a.latency_us * 1e-6, 1e-9 / a.bandwidth_gbs + addition)
    tcp = Hop(a.tcp_latency_us * 1e-6, 1e-9 / a.tcp_bandwidth_gbs + addition)
    wanted = (
        ("mpi", f"{a.latency_us:g} us {a.bandwidth_gbs:g} GB/s", fast),
        ("mpi", f"{a.tcp_latency_us:g} us {a.tcp_bandwidth_gbs:g} GB/s", tcp),
        ("gloo", f"{a.tcp_latency_us:g} us {a.tcp_bandwidth_gbs:g} GB/s", tcp),
    )
    return [
        Setup(engines[name], network, hop, a.ranks_per_node, messages(document, name))
        for name, network, hop in wanted
        if engines.get(name)
    ]


@dataclass(frozen=True)
class Waiting:
    """For the slowest rank, in a step: at every barrier, and if there were one at its end alone."""

    every: float
    one: float


def waiting(found, ranks, compute):
    """None where the skew could not be fitted."""
    if found is None:
        return None
    return Waiting(found.wait(ranks, compute, BARRIERS), found.wait(ranks, compute))


def share(cost, compute):
    """Of a step that takes as much longer."""
    return cost / (compute + cost)

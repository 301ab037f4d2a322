"""Counts the instructions that a thread of the fused kernels issues for a batch of its values.

    python3 .ci/check_cuda_instructions.py MODULE [--cuobjdump PROGRAM] [--show KIND PHASE]

MODULE is `_cuda`, or an object of it, with code for sm_90. How many instructions a multiprocessor
can issue limits the kernels before memory does, so their speed depends on this number. Fails
where a loop takes more than the table below allows, or is not found. `--show "float32 planar 4 1"
reading` prints a loop.

How it is counted. The machine code of a kernel is a graph: an instruction leads to the next one,
a branch to its target, a conditional one to both. The loop of a phase over its batches is the
shortest way around a cycle of that graph on which shared memory is read for every unit of a batch
and input (LDS), every value goes through a multiplication with addition (FMA), and

    reading   a copy to shared memory is started for each unit and input (LDGSTS), nothing is stored
    writing   nothing is copied, and every unit of the result is stored (STG)

Every instruction on that way counts as one, also those whose predicate is false, since they are
issued as well. What is rolled up within it is gone through as often as it takes. So the number is
of a batch in the middle of a part: cold branches (values that are scaled, batches that are not
full, the choice of pilots) are not on the way.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass

FUNCTION = re.compile(r"^\s*Function : (\w+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
TARGET = re.compile(r"(?:^|[\s(`])(0x[0-9a-f]+)\)?\s*$")
KIND = re.compile(
    r"5fusedINS0_4KindI(f|d|NS_7float16E|NS_8bfloat16E)LNS_6LayoutE(\d)ELi(\d+)ELi(\d)E"
)
TYPES = {"f": "float32", "d": "float64", "NS_7float16E": "float16", "NS_8bfloat16E": "bfloat16"}
LAYOUTS = ("planar", "interleaved")
COUNTED = ("LDS", "LDGSTS", "STG", "FMA")
AT_LEAST = ("FMA",)  # others come exactly as often as a batch needs them
ENDS = ("EXIT", "RET", "BPT", "KILL")
JUMPS = ("BRA", "JMP")
FARTHEST = 1500  # instructions around a loop


@dataclass(frozen=True)
class Allowed:
    """The units of a batch, and the most instructions of each phase."""

    batch: int
    reading: int
    writing: int


# (dtype, layout, values of a unit, inputs). In parentheses what the same values took when every
# unit's address was found by multiplying.
ALLOWED = {
    ("float32", "planar", 4, 1): Allowed(4, 160, 115),  # (373, 224)
    ("float32", "planar", 1, 1): Allowed(12, 230, 185),  # (786, 392)
    ("float32", "interleaved", 4, 1): Allowed(4, 175, 100),  # (420, 222)
    ("float32", "planar", 4, 2): Allowed(2, 120, 100),  # (321, 149)
    ("float32", "interleaved", 4, 2): Allowed(2, 145, 95),  # (347, 167)
    ("bfloat16", "planar", 8, 1): Allowed(4, 250, 200),  # (493, 330)
    ("bfloat16", "planar", 4, 1): Allowed(8, 290, 240),  # (697, 439)
    ("bfloat16", "interleaved", 8, 1): Allowed(4, 280, 170),  # (2 x 447, 2 x 259)
    ("bfloat16", "interleaved", 4, 1): Allowed(4, 190, 125),  # (447, 259)
    ("bfloat16", "planar", 8, 2): Allowed(2, 180, 170),  # (390, 246)
    ("bfloat16", "interleaved", 8, 2): Allowed(2, 225, 155),  # (2 x 377, 2 x 200)
    ("float16", "planar", 8, 1): Allowed(4, 250, 200),
    ("float16", "interleaved", 8, 1): Allowed(4, 280, 170),
    ("float16", "planar", 8, 2): Allowed(2, 180, 175),
    ("float16", "interleaved", 8, 2): Allowed(2, 225, 155),
}


@dataclass(frozen=True)
class Instruction:
    """A line of machine code."""

    address: int
    conditional: bool
    operation: str  # without its suffixes
    text: str
    target: int | None

    @classmethod
    def of(cls, line):
        """Read a line of the disassembly; None where it has no instruction."""
        found = INSTRUCTION.match(line)
        if not found:
            return None
        address, predicate, name, operands = found.groups()
        predicate = (predicate or "").strip()
        operation = name.split(".")[0]
        if operation in ("FFMA", "DFMA", "FMUL", "DMUL"):  # a sum's first term is a product alone
            operation = "FMA"
        if predicate in ("@!PT", "@!UPT"):  # ptxas puts loads that never happen before some copies
            operation = "NOP"
        conditional = predicate not in ("", "@PT", "@UPT")
        target = None
        if operation in JUMPS:
            # `BRA P1, 0x100` and `BRA.U UP0, 0x100` have one more predicate.
            conditional = conditional or bool(re.match(r"!?U?P\d|~?UR\w", operands))
            where = TARGET.search(operands)
            target = int(where[1], 16) if where else None
        text = f"{address}  {predicate:6} {name} {operands}"
        return cls(int(address, 16), conditional, operation, text, target)


def functions(disassembly):
    """Split it into {symbol: instructions}."""
    found, code = {}, []
    for line in disassembly.splitlines():
        if name := FUNCTION.match(line):
            code = found.setdefault(name[1], [])
        elif instruction := Instruction.of(line):
            code.append(instruction)
    return found


def successors(code):
    """List, for every instruction, the indices of those that may come next."""
    index_of = {instruction.address: i for i, instruction in enumerate(code)}
    following = []
    for i, one in enumerate(code):
        after = []
        if (one.conditional or one.operation not in ENDS + JUMPS) and i + 1 < len(code):
            after.append(i + 1)
        if one.target in index_of:
            after.append(index_of[one.target])
        following.append(after)
    return following


def shortest(code, following, begin, end, wanted, limit):
    """Find the shortest way from one instruction to another with what is wanted of COUNTED.

    Breadth first over (instruction, counts so far); a list of instructions, or None.
    """
    first = (begin, (0,) * len(COUNTED))
    before = {first: None}
    front = [first]
    for _ in range(limit):
        later = []
        for state in front:
            i, counts = state
            if code[i].operation in COUNTED:
                k = COUNTED.index(code[i].operation)
                if counts[k] < wanted[k]:
                    counts = (*counts[:k], counts[k] + 1, *counts[k + 1 :])
                elif COUNTED[k] not in AT_LEAST:
                    continue
            if i == end:
                if counts == wanted:
                    way = []
                    while state:
                        way.append(code[state[0]])
                        state = before[state]
                    return way[::-1]
                continue
            for j in following[i]:
                if (j, counts) not in before:
                    before[j, counts] = state
                    later.append((j, counts))
        front = later
    return None


def loop(code, wanted):
    """Find the shortest cycle with what is wanted, or None."""
    following = successors(code)
    needed = {name for name, count in zip(COUNTED, wanted, strict=True) if count}
    best = None
    for end, after in enumerate(following):
        for begin in after:
            if begin > end or not needed <= {i.operation for i in code[begin : end + 1]}:
                continue
            limit = FARTHEST if best is None else len(best) - 1
            best = shortest(code, following, begin, end, wanted, limit) or best
    return best


def phases(code, kind, batch):
    """Find the loops of both phases of a kernel."""
    _, _, unit, inputs = kind
    units, values = batch * inputs, batch * unit
    return {
        "reading": loop(code, (units, units, 0, values)),
        "writing": loop(code, (units, 0, batch, values)),
    }


def kinds(disassembly):
    """Find the fused kernels: {kind: instructions}."""
    found = {}
    for symbol, code in functions(disassembly).items():
        if kind := KIND.search(symbol):
            dtype, layout, unit, inputs = kind.groups()
            found[TYPES[dtype], LAYOUTS[int(layout)], int(unit), int(inputs)] = code
    return found


def main(arguments=None):
    """Print a line for each kernel; 1 where one takes too many instructions or is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("--cuobjdump", default="cuobjdump", help="NVIDIA's disassembler")
    parser.add_argument("--show", nargs=2, metavar=("KIND", "PHASE"))
    options = parser.parse_args(arguments)
    disassembly = subprocess.run(
        [options.cuobjdump, "-sass", "-arch", "sm_90", options.module],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    kernels = kinds(disassembly)
    failed = 0
    for kind, allowed in ALLOWED.items():
        name = " ".join(map(str, kind))
        found = phases(kernels.get(kind, []), kind, allowed.batch)
        if options.show:
            if options.show[0] == name:
                print("\n".join(i.text for i in found[options.show[1]] or []))
            continue
        words = []
        for phase, way in found.items():
            most = getattr(allowed, phase)
            words.append(f"{phase} {len(way) if way else 'not found':>4} (at most {most})")
            failed += way is None or len(way) > most
        print(f"{name:24} {', '.join(words)}")
    if failed:
        print(f"{failed} loops take more instructions than they may")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

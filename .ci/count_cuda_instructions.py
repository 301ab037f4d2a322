"""Counts the instructions that a thread of the fused kernels issues for one batch of its values.

    python3 .ci/count_cuda_instructions.py MODULE --cuobjdump PROGRAM [--check]

MODULE is `_cuda` (or an object of it) with code for sm_90. The kernels are limited by how many
instructions a multiprocessor can issue before they are limited by memory, so this number is what
their speed on 16-bit data depends on.

How it is counted. The machine code of a kernel is a graph: an instruction leads to the next one, a
branch to its target, a conditional one to both. A phase's loop over the batches is the shortest way
around a cycle of that graph on which shared memory is read once for every unit of the batch and
input (LDS), and
    reading   a copy to shared memory is started for as many (LDGSTS), and nothing is stored
    writing   nothing is copied, and every unit of the result is stored (STG)
Every instruction on that way counts as one, predicated ones too, since they are issued whether or
not they have an effect. A loop within the way is gone through as often as it takes to find its
copies. So cold branches (rescaled sums, batches that are not full) do not count, nor does what a
batch that is not kept in shared memory is read again by; where a batch's loop is unrolled, the sum
is divided by the batches.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass

FUNCTION = re.compile(r"^\s*Function : (\w+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
TARGET = re.compile(r"(?:^|\s|`\()(0x[0-9a-f]+)\s*$")
KIND = re.compile(
    r"5fusedINS0_4KindI(?P<type>f|d|NS_7float16E|NS_8bfloat16E|S\w*_)LNS_6LayoutE(?P<layout>\d)E"
    r"Li(?P<unit>\d+)ELi(?P<inputs>\d)E"
)
TYPES = {"f": "float32", "d": "float64", "NS_7float16E": "float16", "NS_8bfloat16E": "bfloat16"}
LAYOUTS = ("planar", "interleaved")
NEVER_RETURNS = {"EXIT", "RET", "BPT", "KILL"}


@dataclass(frozen=True)
class Loop:
    """What a batch of one kind of kernel is, and the most instructions that it may take."""

    type: str
    layout: str
    unit: int  # values
    inputs: int
    batch: int  # units
    reading: int
    writing: int


@dataclass
class Instruction:
    """One line of machine code."""

    address: int
    conditional: bool
    operation: str  # without its suffixes
    operands: str
    full: str = ""


def functions(text):
    """Split the disassembly into {symbol: instructions}."""
    found, current = {}, None
    for line in text.splitlines():
        if name := FUNCTION.match(line):
            current = found.setdefault(name[1], [])
        elif current is not None and (part := INSTRUCTION.match(line)):
            condition = (part[2] or "").strip()
            # (Those that never happen, which ptxas puts before some copies, are issued as well.)
            operation = "NOP" if condition in ("@!PT", "@!UPT") else part[3].split(".")[0]
            if operation in ("FFMA", "DFMA"):
                operation = "FMA"
            conditional = bool(condition) and condition not in ("@PT", "@UPT")
            current.append(Instruction(int(part[1], 16), conditional, operation, part[4], part[3]))
    return found


def successors(code):
    """List, for every instruction, the indices of those that may come next."""
    index_of = {instruction.address: i for i, instruction in enumerate(code)}
    following = []
    for i, instruction in enumerate(code):
        after = []
        goes_on = instruction.conditional or not (
            instruction.operation in NEVER_RETURNS or instruction.operation in ("BRA", "JMP")
        )
        # A branch on a further predicate (`BRA P1, ...`, `BRA.U !UP0, ...`) is conditional as well.
        if instruction.operation == "BRA" and re.match(r"!?U?P\d|UR\d|~URZ", instruction.operands):
            goes_on = True
        if goes_on and i + 1 < len(code):
            after.append(i + 1)
        if instruction.operation in ("BRA", "JMP"):
            target = TARGET.search(instruction.operands)
            if target and int(target[1], 16) in index_of:
                after.append(index_of[int(target[1], 16)])
        following.append(after)
    return following


COUNTED = ("LDS", "LDGSTS", "STG", "FMA")
FARTHEST = 1500  # instructions around a loop


def shortest(code, following, begin, end, wanted, limit, show=False):
    """Fewest instructions from `begin` to `end`, with exactly so many of each in COUNTED (FMA: no less)."""
    state = (begin, (0,) * len(COUNTED))
    before = {state: None}
    now, length = [state], 0
    while now and length < limit:
        length += 1
        later = []
        for i, counts in now:
            state = (i, counts)
            if code[i].operation in COUNTED:
                k = COUNTED.index(code[i].operation)
                if counts[k] == wanted[k]:
                    if COUNTED[k] not in ("FMA", "LDS"):
                        continue
                else:
                    counts = (*counts[:k], counts[k] + 1, *counts[k + 1 :])
            if i == end:
                if counts == wanted:
                    if show:
                        way = []
                        while state:
                            way.append(code[state[0]])
                            state = before[state]
                        for one in reversed(way):
                            print(
                                f"  {one.address:05x} {'?' if one.conditional else ' '} {one.full} {one.operands}"
                            )
                    return length
                continue
            for j in following[i]:
                if (j, counts) not in before:
                    before[j, counts] = state
                    later.append((j, counts))
        now = later
    return None


def per_batch(code, units, stores, values, show=False):
    """Instructions of a batch in the loop that fits, or None where there is none."""
    following = successors(code)
    back = [(begin, end) for end, after in enumerate(following) for begin in after if begin <= end]
    needed = ("LDS", "STG" if stores else "LDGSTS")
    back = [
        (begin, end)
        for begin, end in back
        if {i.operation for i in code[begin : end + 1]}.issuperset(needed)
    ]
    for times in (1, 2, 4):
        wanted = tuple(times * n for n in (units, 0 if stores else units, stores, values))
        best = None
        for begin, end in back:
            limit = (best or FARTHEST) - 1
            if (found := shortest(code, following, begin, end, wanted, limit)) is not None:
                best, of_best = found, (begin, end)
        if best is not None:
            if show:
                shortest(code, following, *of_best, wanted, FARTHEST, True)
            return best / times
    return None


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    options = parser.parse_args(arguments)
    text = subprocess.run(
        [options.cuobjdump, "-sass", "-arch", "sm_90", options.module],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for symbol, code in functions(text).items():
        kind = KIND.search(symbol)
        if not kind:
            continue
        sizes = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
        type_ = TYPES.get(kind["type"], kind["type"])
        unit, inputs = int(kind["unit"]), int(kind["inputs"])
        batch = (
            (
                12
                if (
                    unit == 1 and type_ and LAYOUTS[int(kind["layout"])] == "planar" and inputs == 1
                )
                else 8
            )
            if unit == 1
            else (4 if inputs == 1 else 2)
            * (
                2
                if LAYOUTS[int(kind["layout"])] == "planar" and unit * sizes.get(type_, 2) < 16
                else 1
            )
        )
        if len(sys.argv) > 4 and sys.argv[4] == "b":
            batch = int(sys.argv[5])
        show = __import__("os").environ.get("SHOW", "")
        reading = per_batch(code, batch * inputs, 0, batch * unit, "r" in show)
        writing = per_batch(code, batch * inputs, batch, batch * unit, "w" in show)
        print(
            type_,
            LAYOUTS[int(kind["layout"])],
            unit,
            "inputs",
            inputs,
            "batch",
            batch,
            "reading",
            reading,
            "writing",
            writing,
            "code",
            len(code),
        )


if __name__ == "__main__":
    sys.exit(main())

"""The count of the kernels' instructions: it finds the loops, and what they take."""

import stat

import pytest

from .ci_scripts import imported, needs_the_folder

KIND = ("float32", "planar", 4, 1)
SYMBOL = (
    "_ZN5bnext4cuda5fusedINS0_4KindIfLNS_6LayoutE0ELi4ELi1EEENS0_7ForwardIS4_EEEEvNS0_9ArgumentsE"
)

pytestmark = needs_the_folder


@pytest.fixture(scope="module")
def check():
    with imported("check_cuda_instructions") as module:
        yield module


def listing(lines):
    """What the disassembler prints; "label:" names an address, which "@label" stands for."""
    addresses, text, address = {}, [], 0
    for line in lines:
        if line.endswith(":"):
            addresses[line[:-1]] = address
        else:
            text.append((address, line))
            address += 16
    body = []
    for address, line in text:
        for label, value in addresses.items():
            line = line.replace(f"@{label}", f"{value:#x}")
        body.append(
            f"        /*{address:04x}*/                   {line} ;   /* 0x0000000000000000 */"
        )
    return "\n".join([f"\t\tFunction : {SYMBOL}", *body])


FMAS = ["FFMA R1, R2, R3, R1"] * 16
LOADS = ["LDS.128 R4, [R2]", "LDS.128 R8, [R2+0x200]"] * 2

# 4 + 4 + 3 + 16 + 2 instructions around; the cold branch is shorter, and sums nothing.
READING = [
    "MOV R1, R2",
    "reading:", *LOADS,
    "@P0 BRA @fetched", *["LDGSTS.E.128 [R2], desc[UR4][R4.64]"] * 4,
    "fetched:", "ISETP.GT.AND P1, PT, R1, R2, PT", "@P1 BRA @cold",
    *FMAS,
    "IADD3 R1, R1, 0x1, RZ", "@!P2 BRA @reading", "BRA @between",
    "cold:", "IADD3 R1, R1, 0x1, RZ", "@!P2 BRA @reading",
]  # fmt: skip
# 4 + 16 + 2 x (1 + 2 + 1) + 1, the stores in a loop of their own; a copy that need not happen.
WRITING = [
    "between:", "BAR.SYNC 0x0",
    "writing:", *LOADS, "@P0 BRA @full", "LDGSTS.E.128 [R2], desc[UR4][R4.64]",
    "full:", *FMAS,
    "stores:", "@!PT LDS RZ, [RZ]", *["STG.E.128 desc[UR4][R4.64], R4"] * 2, "@P3 BRA @stores",
    "@P4 BRA @writing", "EXIT",
]  # fmt: skip


def found(check, lines):
    code = check.kinds(listing(lines))[KIND]
    return {name: way and len(way) for name, way in check.phases(code, KIND, 4).items()}


def test_the_shortest_way_that_does_the_work_is_counted(check):
    assert found(check, READING + WRITING) == {
        "reading": 4 + 1 + 4 + 2 + 16 + 2,
        "writing": 4 + 1 + 16 + 2 * 4 + 1,
    }


def test_a_loop_without_the_work_is_none(check):
    lines = [line for line in READING + WRITING if not line.startswith("STG")]
    assert found(check, lines)["writing"] is None
    lines = list(READING + WRITING)
    lines.remove(FMAS[0])
    assert found(check, lines)["reading"] is None


@pytest.mark.parametrize(("lines", "status"), [(READING + WRITING, 0), (READING, 1)])
def test_the_program_says_which_loops_take_too_much(
    check, monkeypatch, tmp_path, capsys, lines, status
):
    (tmp_path / "listing").write_text(listing(lines))
    program = tmp_path / "cuobjdump"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/listing\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(check, "ALLOWED", {KIND: check.Allowed(4, 30, 30)})
    assert check.main(["module", "--cuobjdump", str(program)]) == status
    out = capsys.readouterr().out
    assert "float32 planar 4 1" in out
    assert ("not found" in out) == (status == 1)
    monkeypatch.setattr(check, "ALLOWED", {KIND: check.Allowed(4, 28, 30)})
    assert check.main(["module", "--cuobjdump", str(program)]) == 1

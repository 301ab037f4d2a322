"""What control groups leave a process: version 1, version 2, both, containers, nested limits."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bnext import _core

MIB = 1 << 20
V1_NONE = "9223372036854771712"
"""What version 1 has in memory.limit_in_bytes where there is no limit, with pages of 4 KiB."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@dataclass
class Machine:
    """A process's two files, and the folders that they name, below `root`."""

    root: Path
    groups: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)

    def group(self, path, controllers=""):
        """The process is in that group of a hierarchy; no controllers: version 2's."""
        number = len(self.groups) + 1 if controllers else 0
        self.groups.append(f"{number}:{controllers}:{path}")

    def mount(self, place, controllers="", top="/"):
        """A hierarchy is mounted there, from group `top` on."""
        kind, options = ("cgroup", f"rw,{controllers}") if controllers else ("cgroup2", "rw")
        escaped = str(self.root / place).replace("\\", r"\134").replace(" ", r"\040")
        self.mounts.append(
            f"{31 + len(self.mounts)} 30 0:27 {top} {escaped} rw,relatime shared:9 - "
            f"{kind} {kind} {options}"
        )
        (self.root / place).mkdir(parents=True, exist_ok=True)

    def set(self, path, text):
        """Writes one of a group's files."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def limits(self):
        groups, mounts = self.root / "cgroup", self.root / "mountinfo"
        groups.write_text("".join(f"{line}\n" for line in self.groups))
        others = [
            "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw",
            f"23 22 0:20 / {self.root} rw,nosuid shared:2 - tmpfs cgroup rw,mode=755,memory",
        ]
        mounts.write_text("".join(f"{line}\n" for line in [*others, *self.mounts]))
        return _core.control_limits(str(groups), str(mounts))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture(params=[1, 2])
def version(request, machine):
    """A machine of that version, with the process in /jobs/one; a function that sets limits."""
    if request.param == 2:
        machine.mount("fs")
        machine.group("/jobs/one")
    else:
        for name in ("memory", "cpu,cpuacct"):
            machine.mount(f"fs/{name}", name)
            machine.group("/jobs/one", name)

    def limit(group, memory=None, cores=None):
        if request.param == 2:
            machine.set(f"fs{group}/memory.max", "max" if memory is None else str(memory))
            quota = "max" if cores is None else str(int(cores * 100000))
            machine.set(f"fs{group}/cpu.max", f"{quota} 100000")
        else:
            machine.set(
                f"fs/memory{group}/memory.limit_in_bytes",
                V1_NONE if memory is None else str(memory),
            )
            quota = "-1" if cores is None else str(int(cores * 50000))
            machine.set(f"fs/cpu,cpuacct{group}/cpu.cfs_quota_us", quota)
            machine.set(f"fs/cpu,cpuacct{group}/cpu.cfs_period_us", "50000")

    return limit


def test_the_processs_own_group(machine, version):
    version("")
    version("/jobs")
    version("/jobs/one", 300 * MIB, 0.5)
    version("/jobs/other", MIB, 0.25)
    assert machine.limits() == (300 * MIB, 0.5)


@pytest.mark.parametrize("where", ["", "/jobs"])
def test_the_smallest_limit_on_the_way_up_counts(machine, version, where):
    version("/jobs/one", 300 * MIB, 2.5)
    version(where, 200 * MIB, 1.5)
    assert machine.limits() == (200 * MIB, 1.5)
    version("/jobs/one", 100 * MIB, 0.25)
    assert machine.limits() == (100 * MIB, 0.25)


def test_no_limit(machine, version):
    for group in ("", "/jobs", "/jobs/one"):
        version(group)
    assert machine.limits() == (None, None)


def test_one_limit_is_not_the_other(machine, version):
    version("/jobs/one", 300 * MIB, None)
    assert machine.limits() == (300 * MIB, None)
    version("/jobs/one", None, 3)
    assert machine.limits() == (None, 3.0)


def test_a_limit_of_the_root_alone(machine, version):
    version("", 300 * MIB, 2)
    assert machine.limits() == (300 * MIB, 2.0)


def test_a_group_that_is_gone_leaves_those_above(machine, version):
    version("/jobs", 300 * MIB, 2)
    machine.groups = [f"{line} (deleted)" for line in machine.groups]
    assert machine.limits() == (300 * MIB, 2.0)


def test_limits_are_as_they_are_now(machine, version):
    version("/jobs/one", 300 * MIB, 2)
    assert machine.limits() == (300 * MIB, 2.0)
    version("/jobs/one", 700 * MIB, 3)
    assert machine.limits() == (700 * MIB, 3.0)


def test_memory_high_is_a_limit(machine):
    machine.mount("fs")
    machine.group("/job")
    machine.set("fs/job/memory.max", "max")
    machine.set("fs/job/memory.high", str(400 * MIB))
    assert machine.limits() == (400 * MIB, None)
    machine.set("fs/job/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)


def test_version_1_beside_an_empty_version_2(machine):
    """As systemd's hybrid hierarchy has it, and version 2 first."""
    machine.mount("fs/unified")
    machine.mount("fs/memory", "memory")
    machine.mount("fs/cpu", "cpu")
    machine.group("/user.slice/session")
    machine.group("/user.slice", "memory")
    machine.group("/", "cpu")
    machine.set("fs/unified/user.slice/session/cgroup.procs", "1")
    machine.set("fs/memory/user.slice/memory.limit_in_bytes", str(300 * MIB))
    machine.set("fs/cpu/cpu.cfs_quota_us", "150000")
    machine.set("fs/cpu/cpu.cfs_period_us", "100000")
    assert machine.limits() == (300 * MIB, 1.5)


def test_each_controller_has_its_own_version(machine):
    machine.mount("fs/unified")
    machine.mount("fs/cpu,cpuacct", "cpu,cpuacct")
    machine.group("/a")
    machine.group("/b", "cpu,cpuacct")
    machine.set("fs/unified/a/memory.max", str(300 * MIB))
    machine.set("fs/unified/b/memory.max", str(MIB))
    machine.set("fs/cpu,cpuacct/b/cpu.cfs_quota_us", "25000")
    machine.set("fs/cpu,cpuacct/b/cpu.cfs_period_us", "100000")
    machine.set("fs/cpu,cpuacct/a/cpu.cfs_quota_us", "1000")
    machine.set("fs/cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    assert machine.limits() == (300 * MIB, 0.25)


@pytest.mark.parametrize("controllers", ["", "memory"])
def test_a_container_that_sees_its_subtree(machine, controllers):
    """The mount's top is the container's group, and the group's path is the host's."""
    knob = "memory.limit_in_bytes" if controllers else "memory.max"
    machine.mount("fs", controllers, top="/docker/4f0c")
    machine.group("/docker/4f0c/inner", controllers)
    machine.set(f"fs/{knob}", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)
    machine.set(f"fs/inner/{knob}", str(200 * MIB))
    machine.set(f"fs/docker/4f0c/inner/{knob}", str(MIB))
    assert machine.limits() == (200 * MIB, None)


@pytest.mark.parametrize("top", ["/docker/4f", "/docker/4f0c/inner/more", "/../.."])
def test_a_container_whose_group_goes_by_another_name(machine, top):
    """Of the mount's groups only the top is known to be the process's, or above it."""
    machine.mount("fs", top=top)
    machine.group("/docker/4f0c/inner")
    machine.set("fs/memory.max", str(300 * MIB))
    machine.set("fs/inner/memory.max", str(MIB))
    assert machine.limits() == (300 * MIB, None)


def test_a_container_with_a_name_space_of_its_own(machine):
    machine.mount("fs")
    machine.group("/")
    machine.set("fs/memory.max", str(300 * MIB))
    machine.set("fs/cpu.max", "200000 100000")
    machine.set("fs/other/memory.max", str(MIB))
    assert machine.limits() == (300 * MIB, 2.0)


def test_another_groups_mount_counts_only_where_there_is_no_better(machine):
    machine.mount("elsewhere", top="/docker/another")
    machine.mount("fs")
    machine.group("/docker/4f0c")
    machine.set("elsewhere/memory.max", str(MIB))
    machine.set("fs/docker/4f0c/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)


def test_a_process_outside_its_name_space(machine):
    """Its group is not below the mount, and a path with .. would leave the hierarchy."""
    machine.mount("fs/unified")
    machine.group("/../other")
    machine.set("fs/other/memory.max", str(MIB))
    machine.set("fs/unified/memory.max", str(MIB))
    assert machine.limits() == (None, None)
    machine.mount("whole", top="/..")
    machine.set("whole/other/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)


def test_places_with_spaces_and_groups_with_colons(machine):
    machine.mount("a folder\\040", top="/a")
    machine.group("/a/b:c d\\x2d")
    machine.set("a folder\\040/b:c d\\x2d/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)


def test_lines_longer_than_any_buffer(machine):
    layers = ":".join(f"/layers/{number}" for number in range(5000))
    machine.mounts.append(f"40 30 0:50 / /merged rw - overlay overlay rw,lowerdir={layers}")
    machine.mount("fs")
    machine.mounts.append(f"41 30 0:51 / /{'x' * 9000} rw - cgroup2 cgroup2 rw")
    machine.groups.append(f"7:name=of,nobody:/{'y/' * 9000}")
    machine.group("/job")
    machine.set("fs/job/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)
    deep = "/".join("z" * 200 for _ in range(25))  # more than a path may have
    machine.groups[-1] = f"0::/{deep}"
    assert machine.limits() == (None, None)


@pytest.mark.parametrize("text", ["", "max", "none", "-1", "9" * 40, V1_NONE, " 5"])
def test_what_is_no_number_is_no_limit(machine, text):
    machine.mount("fs")
    machine.group("/job")
    machine.set("fs/memory.max", str(300 * MIB))
    machine.set("fs/job/memory.max", text)
    machine.set("fs/job/cpu.max", f"{text} 100000" if text != V1_NONE else "max 100000")
    assert machine.limits() == (300 * MIB, None)


@pytest.mark.parametrize("text", ["100000", "100000 0", "0 100000", "100000 many"])
def test_half_a_quota_is_none(machine, text):
    machine.mount("fs")
    machine.group("/job")
    machine.set("fs/job/cpu.max", text)
    assert machine.limits() == (None, None)


def test_a_last_line_without_an_end(machine):
    machine.mount("fs")
    machine.group("/job")
    machine.set("fs/job/memory.max", "")
    (machine.root / "fs/job/memory.max").write_text("300")
    machine.limits()
    (machine.root / "cgroup").write_text("3:devices:/\n0::/job")
    files = machine.root / "cgroup", machine.root / "mountinfo"
    assert _core.control_limits(*map(str, files)) == (300, None)


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo", "both"])
def test_missing_files_are_no_limit(tmp_path, machine, missing):
    machine.mount("fs")
    machine.group("/job")
    machine.set("fs/job/memory.max", str(300 * MIB))
    assert machine.limits() == (300 * MIB, None)
    files = [
        str(tmp_path / ("nothing" if missing in (name, "both") else name))
        for name in ("cgroup", "mountinfo")
    ]
    assert _core.control_limits(*files) == (None, None)


def test_this_processs_limits_can_be_read():
    memory, cores = _core.control_limits("/proc/self/cgroup", "/proc/self/mountinfo")
    assert memory is None or memory > 0
    assert cores is None or cores > 0

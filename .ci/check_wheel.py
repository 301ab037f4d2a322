"""What is in a repaired wheel: ``python .ci/check_wheel.py WHEEL...``.

Every library in it has a licence in it and a place in its SBOM, no path of the machine that built
it is left, and the extension looks for nothing but what manylinux has everywhere.
"""

import io
import json
import re
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from elftools.elf.elffile import ELFFile

# Libraries that may be copied into a wheel, and the files that must come with them.
BUNDLED = {"libgomp": ("GPL-3.0.txt", "GCC-exception-3.1.txt")}
ALWAYS = ("LICENSE", "README.md", "pybind11.txt")
SYSTEM = re.compile(
    r"(libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+|ld-linux[\w-]*)\.so\.\d+"
)


def problems(path):
    """Say what is wrong with a wheel, line by line."""
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        folder = metadata.removesuffix("METADATA")
        if "linux_" in Path(path).name and "manylinux_" not in Path(path).name:
            yield "a tag of manylinux was expected"
        headers = HeaderParser().parsestr(wheel.read(metadata).decode())
        licenses = {n.rpartition("/")[2] for n in names if n.startswith(folder + "licenses/")}
        declared = {n.rpartition("/")[2] for n in headers.get_all("License-File", [])}
        if licenses != declared:
            yield f"licence files {sorted(licenses)}, declared are {sorted(declared)}"
        wanted = set(ALWAYS)
        libraries = [n for n in names if n.startswith("bnext.libs/")]
        for name in libraries:
            stem = re.match(r"lib[\w+]+", name.rpartition("/")[2])[0]
            if stem not in BUNDLED:
                yield f"{name}: a library that licenses/README.md does not know"
            wanted.update(BUNDLED.get(stem, ()))
        if missing := sorted(wanted - licenses):
            yield f"no licence files {', '.join(missing)}"
        sboms = [n for n in names if n.startswith(folder + "sboms/")]
        listed = "".join(json.dumps(json.loads(wheel.read(n))) for n in sboms)
        for name in libraries:
            if re.match(r"lib[\w+]+", name.rpartition("/")[2])[0] not in listed:
                yield f"{name}: not in an SBOM ({', '.join(sboms) or 'there is none'})"
        for name in names:
            if ".so" in name:
                yield from problems_of_elf(name, wheel.read(name), libraries)


def problems_of_elf(name, data, libraries):
    """Say what is wrong with a shared library."""
    known = {library.rpartition("/")[2] for library in libraries}
    for tag in ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic").iter_tags():
        needed = tag.needed if tag.entry.d_tag == "DT_NEEDED" else ""
        if needed and not SYSTEM.fullmatch(needed) and needed not in known:
            yield f"{name}: needs {needed}, which is not in the wheel"
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            path = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
            if not path.startswith("$ORIGIN"):
                yield f"{name}: looks for libraries in {path}"
    for path in re.findall(rb"/(?:tmp|home|root|build)/[\w./+-]+", data):
        yield f"{name}: has the path {path.decode()}"
    if name.startswith("bnext/") and ELFFile(io.BytesIO(data)).get_section_by_name(".symtab"):
        yield f"{name}: expected no table of symbols"


def main(paths):
    """Check wheels; 1 if something is wrong."""
    wrong = 0
    for path in paths:
        for problem in problems(path):
            print(f"{Path(path).name}: {problem}")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

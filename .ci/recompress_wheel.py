"""Packs wheels as small as deflate allows: ``python .ci/recompress_wheel.py WHEEL...``.

The same files under the same names, dates and modes, in the same order: the same bytes each time.
Every installer reads deflate; zopfli spends more time than zlib on finding the shortest. Files that
several wheels have are compressed once.
"""

import functools
import sys
import zipfile
from pathlib import Path

import zopfli.zlib

ITERATIONS = 5  # what zopfli recommends for files of several megabytes


@functools.cache
def smallest(data):
    """Compress data, without zlib's header and checksum."""
    return zopfli.zlib.compress(data, numiterations=ITERATIONS)[2:-4]


class Smallest:
    """A compressor as `zipfile` has them, by zopfli."""

    def __init__(self):
        self._data = bytearray()

    def compress(self, data):
        """Keep data; nothing is compressed before all is known."""
        self._data += data
        return b""

    def flush(self):
        """All data, compressed."""
        return smallest(bytes(self._data))


def recompress(path):
    """Write a wheel again; return its sizes before and after."""
    written = path.with_suffix(".smaller")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            with new.open(info, "w") as file:
                if info.compress_type == zipfile.ZIP_DEFLATED:
                    file._compressor = Smallest()
                file.write(data)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written) as new:
        if contents(old) != contents(new):
            sys.exit(f"{path}: expected the same files after recompression")
    before, after = (file.stat().st_size for file in (path, written))
    written.replace(path)
    return before, after


def contents(archive):
    """List what an installer sees of an archive."""
    return [
        (info.filename, info.date_time, info.external_attr, archive.read(info))
        for info in archive.infolist()
    ]


def main(paths):
    """Recompress wheels."""
    for path in map(Path, paths):
        before, after = recompress(path)
        print(f"{path.name}: {after} bytes, {before} before it was recompressed")


if __name__ == "__main__":
    main(sys.argv[1:])

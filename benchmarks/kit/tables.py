"""Tables in Markdown and in plain text, and the numbers in them."""

NO_VALUE = "-"
NOT_MEASURED = "Not measured.\n"
TEXTS = (
    *("promise", "where", "case", "dtype", "layout", "operation", "pages", "cause", "data", ""),
    *("group", "library", "reason"),
)


def markdown(header, rows, empty=None):
    """A table, with columns of numbers aligned to the right; `empty` is what stands for no rows."""
    if empty is not None and not rows:
        return empty
    text = [" | ".join(header), " | ".join(":--" if h in TEXTS else "--:" for h in header)]
    text += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in text) + "\n"


def plain(lines, left=()):
    """A table for a terminal; `left` are the columns that are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [str.ljust if n in left else str.rjust for n in range(len(widths))]
    return "\n".join(
        "  ".join(
            align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def facts(lines):
    """A table of names and values."""
    return "| | |\n|:--|:--|\n" + "".join(f"| {name} | {value} |\n" for name, value in lines)


def facts_of(environment):
    """The names and values that every report begins with."""
    return {
        "Date": environment.get("date"),
        "Versions": versions_of(environment),
        "Commit": f"{environment.get('commit')}, build {environment.get('build')}",
        "OpenMP": ", ".join(environment.get("openmp_runtimes", ())) or "none",
        "System": environment.get("system"),
    }


def versions_of(environment):
    versions = environment.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def ratio(value):
    """Bold where it is a loss; a mark for None."""
    if value is None:
        return NO_VALUE
    return f"{value:.2f}" if value >= 1 else f"**{value:.2f}**"


def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def promises(verdicts):
    """The promises, with their bounds and figures."""
    lines = [
        (
            *(v.text, f"{v.least:g}", NO_VALUE if v.figure is None else f"{v.figure:.2f}"),
            *(v.word if v.word == "kept" else f"**{v.word}**", v.where),
        )
        for v in verdicts
    ]
    return markdown(("promise", "at least", "measured", "", "where"), lines)


def sums(found, titles, terms, rates=1):
    """Sums over layers: their terms, the ratio to each peer, and the figures of bnext.

    `rates` are the decimals of the bandwidth.
    """
    peers = [peer for peer in titles if any(peer in s.seconds for s in found)]
    header = (*terms, *(f"x {titles[p]}" for p in peers), "bnext ms", "GB/s", "of copy")
    lines = [
        (
            *(str(getattr(s, term)) for term in terms),
            *(ratio(s.ratio(p)) for p in peers),
            *(milliseconds(s.seconds["bnext"]), f"{s.bandwidth / 1e9:.{rates}f}"),
            f"{s.share_of_copy:.0%}",
        )
        for s in found
    ]
    return markdown(header, lines, NOT_MEASURED)

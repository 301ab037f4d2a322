"""Command lines: their statuses, and what is said of wrong ones."""


def status_of(main, words):
    """Exit status, whether returned or raised."""
    try:
        return main(list(map(str, words)))
    except SystemExit as raised:
        return raised.code


def refusal_of(main, words, capsys):
    """The error of a wrong command line, which ends with status 2."""
    assert status_of(main, words) == 2
    return capsys.readouterr().err

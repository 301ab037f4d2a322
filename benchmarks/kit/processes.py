"""Processes of their own, for what a process remembers: memory that was freed, modules, threads."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def alone(function, *arguments):
    """The result of a call in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()

"""Checks of what is no array, for calls that do not come to a kernel (csrc/core/check.cpp)."""

from __future__ import annotations

from bnext import _core

__all__ = ["axis_of", "check_count", "check_more_than_one"]

axis_of = _core.check_axis
check_count = _core.check_count
check_more_than_one = _core.check_more_than_one

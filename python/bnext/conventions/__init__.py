"""Trained layers in the conventions of other libraries.

record      what a library's convention is made of
libraries   the conventions, as declared records
rules       how averages are made, and what another rule would have given
reading     arrays by their names and shapes
convert     `from_convention`, `to_convention`
"""

from bnext.conventions.convert import from_convention, to_convention

__all__ = ["from_convention", "to_convention"]

"""Trained layers in the conventions of other libraries.

record      what a library's convention is made of
libraries   the conventions, as declared records
rules       how averages are made, and what another rule would have given
reading     arrays by their names and shapes
hyperparameters    eps, momentum, counts
convert     `from_convention`, `to_convention`
finding     which conventions names fit, and where a checkpoint has layers
files       readers of the libraries' formats
loading     `load_statistics`
command     ``python -m bnext convert``
"""

from bnext.inference.conventions.convert import from_convention, to_convention
from bnext.inference.conventions.finding import guess_convention
from bnext.inference.conventions.loading import load_statistics

__all__ = ["from_convention", "guess_convention", "load_statistics", "to_convention"]

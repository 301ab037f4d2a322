"""``python -m bnext statistics``: the statistics that inference can use, side by side.

The demo's networks are trained at many batch sizes. All running averages follow the same training;
statistics from the training set are computed after it.

methods     the methods for statistics, and their names
following   many running averages of one layer, from the same batches
distance    how far a layer's statistics are from the exact ones
experiment  one training run, and the outcome of each method
cost        passes over the data, and the work in them
options     the options of the command line
report      progress bars, and the tables                            (needs rich)
picture     loss and distance by batch size, distance by layer       (needs matplotlib)
numbers     all measurements, as CSV
run         all of it in order
"""

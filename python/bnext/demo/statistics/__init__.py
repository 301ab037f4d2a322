"""``python -m bnext statistics``: the statistics that inference can use, side by side.

The demo's networks are trained at many batch sizes. All running averages follow the same training;
statistics from the training set are computed after it.

methods           the methods for statistics, and their names
layer_statistics  running averages of a layer, and how far statistics are from the exact ones
experiment        one training run, and the outcome of each method
comparison        the outcomes of one network, as means over its runs
cost              passes over the data, and the work in them
options           the options of the command line
report            the tables                                               (needs rich)
picture           loss and distance by batch size, distance by layer       (needs matplotlib)
numbers           all measurements, as CSV
run               all of it in order
"""

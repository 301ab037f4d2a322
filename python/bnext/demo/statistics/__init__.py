"""``python -m bnext statistics``: the statistics that inference can use, side by side.

The demo's networks are trained at many batch sizes. Every running average follows the same
training; what is made from the training set is made after it.

methods     the ways to get at statistics, and their names
following   many running averages of one layer, from the same batches
distance    how far a layer's statistics are from the exact ones
experiment  one training run, and what each method makes of it
cost        passes over the data, and the work in them
options     the options of the command line
report      progress bars, and the tables                            (needs rich)
picture     loss and distance by batch size, distance by layer       (needs matplotlib)
numbers     everything that was measured, as CSV
run         all of it in order
"""

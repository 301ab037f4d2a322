"""``python -m bnext``: the effect of batch normalization on two small networks and real digits.

Everything but the normalization is plain NumPy:

layers      forward and backward of each layer, with a clock around the normalization
loss        softmax cross-entropy
networks    the fully connected and the convolutional network, with and without normalization
data        the handwritten digits, split                            (needs scikit-learn)
training    one training run, and the record of its measurements
report      progress bars, and the table at the end                  (needs rich)
picture     loss curves and the distribution of a hidden layer       (needs matplotlib)
options     the options of the command line, and the check for the extra
run         all of it in order
statistics  ``python -m bnext statistics``: the statistics for inference
"""

"""``python -m bnext``: what batch normalization does to two small networks, on real digits.

Everything but the normalization is plain NumPy and readable from top to bottom:

layers      forward and backward of each layer, with a clock around the normalization
loss        softmax cross-entropy
networks    the fully connected and the convolutional network, with and without normalization
data        the handwritten digits, split                            (needs scikit-learn)
training    one training run: what is measured, and the record of it
report      progress bars, and the table at the end                  (needs rich)
picture     loss curves and the distribution of a hidden layer       (needs matplotlib)
options     the options of the command line, and the check for the extra
run         all of it in order
statistics  ``python -m bnext statistics``: the statistics for inference
"""

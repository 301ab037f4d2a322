"""ncnn: a network of one BatchNorm, read from its two files."""

import tempfile
from pathlib import Path

import ncnn
import numpy as np

from .recording import Inference, record

NAMES = ("slope", "mean", "variance", "bias")  # in the order of the file


class BatchNorm(Inference):
    ranks = (4,)
    eps = 1e-5

    def __init__(self, given, rank):
        values = (given.weight, given.mean, given.var, given.bias)
        self.arrays = dict(zip(NAMES, values, strict=True))
        text = "7767517\n2 2\nInput x 0 1 x\nBatchNorm bn 1 1 x y 0=%d 1=%r\n"
        self.net = ncnn.Net()
        self.net.opt.use_fp16_storage = self.net.opt.use_fp16_arithmetic = False
        self.net.opt.use_bf16_storage = False
        with tempfile.TemporaryDirectory() as folder:
            param, weights = Path(folder) / "bn.param", Path(folder) / "bn.bin"
            param.write_text(text % (given.weight.size, self.eps))
            np.concatenate(values).astype(np.float32).tofile(weights)
            assert self.net.load_param(str(param)) == 0
            assert self.net.load_model(str(weights)) == 0

    def stored(self):
        return self.arrays

    def infer(self, x):
        return np.stack([self._one(sample) for sample in x])

    def _one(self, sample):
        extractor = self.net.create_extractor()
        extractor.input("x", ncnn.Mat(np.ascontiguousarray(sample)).clone())
        status, y = extractor.extract("y")
        assert status == 0
        return np.array(y)


if __name__ == "__main__":
    record({"BatchNorm": BatchNorm}, "ncnn")

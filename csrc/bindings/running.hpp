// A layer's running statistics, checked before the call and updated after it.
#pragma once

#include "bindings/arrays.hpp"
#include "bindings/saved.hpp"
#include "core/float_mode.hpp"

namespace bnext::bindings {

// The running statistics of a layer, updated in place: both or neither.
template <class T>
struct Running {
    Buffer<T> mean, var;
    double momentum = 0;
    double correction = 1;  // Bessel's; 0 leaves the variance biased
    bool given = false;

    Running() = default;
    Running(py::handle mean_object, py::handle var_object, py::handle momentum_object, bool bessel,
            Index channels)
        : correction(bessel ? 1.0 : 0.0) {
        if (mean_object.is_none() && var_object.is_none()) return;
        given = true;
        mean = take_buffer<T>(mean_object, "running_mean", channels);
        var = take_buffer<T>(var_object, "running_var", channels);
        momentum = take_momentum(momentum_object);
    }

    // new = (1 - momentum) * old + momentum * batch
    void update(const Saved& saved) const {
        if (!given || saved.count < 2) return;
        const FloatMode mode;
        const auto blend = [&](T old, double batch) {
            return static_cast<T>((1.0 - momentum) * static_cast<double>(old) + momentum * batch);
        };
        const auto n = static_cast<double>(saved.count);
        const std::span<const double> batch_mean = saved.row(Row::mean),
                                      batch_m2 = saved.row(Row::m2);
        for (std::size_t c = 0; c < batch_mean.size(); ++c) {
            T& running_mean = mean.data[static_cast<Index>(c) * mean.stride];
            T& running_var = var.data[static_cast<Index>(c) * var.stride];
            running_mean = blend(running_mean, batch_mean[c]);
            running_var = blend(running_var, batch_m2[c] / (n - correction));
        }
    }
};

// A layer's count of batches: an int64 array of shape (), or None.
class Counter {
public:
    explicit Counter(py::handle object)
        : array_(py::reinterpret_borrow<py::object>(object)),
          value_(object.is_none() ? nullptr : take_count(object)) {}

    void increment() const {
        if (value_ != nullptr) ++*value_;
    }

private:
    py::object array_;  // the layer may get another one while this call computes
    std::int64_t* value_;
};

}  // namespace bnext::bindings

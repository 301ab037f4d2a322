// DeviceRowSaved: what a forward call of layer or RMS normalization on a GPU leaves for its
// backward call.
#pragma once

#include <span>
#include <vector>

#include "bindings/gpu.hpp"

namespace bnext::bindings {

struct DeviceRowSaved {
    // mean, mean_low and rstd of each row: an array of float64 of the library, of the shape of x
    // without the normalized axes behind a first axis of 3.
    py::object rows;
    py::str where;
    py::object dtype_object;  // of x, as the library has it
    DType dtype = DType::float32;
    std::vector<Index> shape;  // of x
    Index first = 0;           // the first of the normalized axes
    bool centered = true;
    double eps = 0;
    Fused fused{};  // what the call applied besides
    // Copies of the forward call's, from which z is made again; None where there were none, or no
    // activation.
    py::object weight = py::none(), bias = py::none();

    [[nodiscard]] std::span<const Index> leading() const {
        return std::span(shape).first(static_cast<std::size_t>(first));
    }
    [[nodiscard]] std::span<const Index> normalized() const {
        return std::span(shape).subspan(static_cast<std::size_t>(first));
    }
    [[nodiscard]] FromForward facts() const {
        FromForward facts{dtype, shape, first, true, nullptr};
        facts.fused = fused;
        facts.has_flags = false;
        return facts;
    }
};

// `saved` of a backward call, made on the GPU of an engine.
const DeviceRowSaved& take_device_row_saved(py::handle object, const Engine& engine, bool centered);

}  // namespace bnext::bindings

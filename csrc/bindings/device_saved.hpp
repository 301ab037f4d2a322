// DeviceSaved: what a forward call on a GPU leaves for its backward call.
#pragma once

#include <vector>

#include "bindings/gpu.hpp"
#include "bindings/saved.hpp"

namespace bnext::bindings {

inline py::object row_of(const py::object& rows, Row which) {
    const py::slice all{py::none(), py::none(), py::none()};
    return rows[py::make_tuple(static_cast<int>(which), all)];
}

struct DeviceSaved {
    py::object rows;  // an array of float64 of the library: (kStatisticsRows, C or N, G)
    py::str where;
    py::object dtype_object;  // of x, as the library has it
    DType dtype = DType::float32;
    Index channel_axis = 0;
    double eps = 0;
    Index count = 0;  // 0 where the statistics were given
    bool batch_statistics = true;
    std::vector<Index> shape;
    py::object of_group = py::none();  // a Saved of the same statistics, where a group merged them
    Fused fused{};                     // what the call applied besides
    py::object of_z = py::none();      // two rows of float64: scale and shift of its argument
    Index groups = 0;                  // of a norm of cells: rows have the shape (5, N, G)

    // What a group merged, on the host.
    [[nodiscard]] const Saved& merged() const {
        return take_saved(of_group, Function::forward, "x");
    }
    [[nodiscard]] FromForward facts() const {
        FromForward facts{dtype, shape, channel_axis, batch_statistics, nullptr};
        facts.fused = fused;
        facts.has_flags = false;
        facts.groups = groups;
        return facts;
    }
};

// The DeviceSaved of an object, made on the GPU of an engine, for a call of a function. `data`:
// what errors call the array that is given again.
const DeviceSaved& take_device_saved(py::handle object, const Engine& engine, Function function,
                                     const char* data);

}  // namespace bnext::bindings

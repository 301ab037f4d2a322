// What Python needs for foreign functions of XLA: the handlers, and a check of a call before there
// are values, with the errors of every other call.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/build.hpp"
#include "bindings/register.hpp"
#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext::bindings {

namespace py = pybind11;

namespace {

py::object foreign_targets() {
    if (!has_foreign_handlers()) return py::none();
    py::dict found;
    for (const foreign::Target& target : foreign_handlers()) {
        found[target.name] = py::capsule(target.handler, "xla._CUSTOM_CALL_TARGET");
    }
    return found;
}

// Which call the arrays are for; "shard" is the first phase, of a part of a batch.
Function function_of(const std::string& name) {
    if (name == "forward") return Function::forward;
    if (name == "shard") return Function::collect_stats;
    if (name == "normalize") return Function::normalize;
    if (name == "cells") return Function::cell_forward;
    if (name == "rows") return Function::rows_forward;
    value_error("function: expected forward, shard, normalize, cells or rows, got ", name);
}

// Name, shape and dtype.
using Described = std::tuple<std::string, std::vector<Index>, std::string>;

void check_described(const std::string& function, const std::vector<Described>& arrays,
                     Index channel_axis, double eps, std::optional<Index> num_groups,
                     const std::vector<Index>& normalized_shape) {
    Call call(function_of(function));
    Extents extents;
    for (const auto& [name, shape, dtype] : arrays) {
        BNEXT_CHECK(shape.size() <= kMaxAxes, name, ": expected at most ", kMaxAxes,
                    " dimensions, got ", shape.size());
        ArrayRef& array = call.add(role_of(name));
        array.data = nullptr;
        array.element = Element::other;
        for (const DType each : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
            if (dtype == name_of(each)) array.element = element_of(each);
        }
        array.extents = shape.data();
        array.rank = static_cast<std::uint8_t>(shape.size());
        array.place = Place::cpu;
        array.is_array = true;
        array.writeable = false;
        array.object = &dtype;
        array.text = [](const void* text) { return *static_cast<const std::string*>(text); };
        Index* const steps = extents.take(shape.size());
        std::fill_n(steps, shape.size(), Index{0});
        array.steps = steps;
        complete(array, extents);
    }
    call.channel_axis = channel_axis;
    call.eps = eps;
    call.num_groups = num_groups;
    call.normalized_shape = normalized_shape;
    check(call);
}

}  // namespace

void register_foreign(py::module_& m) {
    m.def("foreign_targets", &foreign_targets,
          "The handlers by their names, as capsules; None in a build without them.");
    m.def("check_described", &check_described, py::arg("function"), py::arg("arrays"),
          py::arg("channel_axis"), py::arg("eps"), py::arg("num_groups") = py::none(),
          py::arg("normalized_shape") = std::vector<Index>(),
          "The check of a call whose arrays are known by name, shape and dtype alone.");
}

}  // namespace bnext::bindings

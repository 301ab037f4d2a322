#include "bindings/saved.hpp"

#include <pybind11/stl.h>

#include <cstring>

#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

py::array_t<double> read_only(const std::vector<double>& values, const py::object& owner) {
    py::array_t<double> array(static_cast<py::ssize_t>(values.size()), values.data(), owner);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

template <std::vector<double> Saved::* Member>
py::array_t<double> vector_property(const py::object& self) {
    return read_only(py::cast<const Saved&>(self).*Member, self);
}

}  // namespace

std::uint64_t fingerprint_of(const Array& x) {
    constexpr Index kSamples = 8;
    const Index size = x.size();
    if (size == 0) return 0;
    const auto* base = static_cast<const char*>(x.object().data());
    std::uint64_t hash = 1469598103934665603ULL;
    for (Index s = 0; s < kSamples; ++s) {
        Index flat = size <= kSamples ? s % size : s * (size - 1) / (kSamples - 1);
        const char* p = base;
        for (std::size_t a = x.rank(); a-- > 0;) {
            const Index extent = x.shape()[a];
            p += (flat % extent) * x.object().strides(static_cast<py::ssize_t>(a));
            flat /= extent;
        }
        std::uint64_t bits = 0;
        std::memcpy(&bits, p, static_cast<std::size_t>(size_of(*x.dtype())));
        hash = (hash ^ bits) * 1099511628211ULL;
        hash ^= hash >> 29;
    }
    return hash;
}

void Saved::check_input(const Array& x) const {
    const auto x_shape = x.shape();
    if (!std::equal(shape.begin(), shape.end(), x_shape.begin(), x_shape.end())) {
        value_error(concat("saved: made from an input of shape ", shape_text(shape),
                           ", got x of shape ", shape_text(x_shape)));
    }
    if (x.dtype() != dtype) {
        value_error(concat("saved: made from a ", name_of(dtype), " input, got x of ",
                           name_of(*x.dtype())));
    }
    if (fingerprint_of(x) != fingerprint) {
        value_error("saved: made from another x, or x was changed since (their elements differ)");
    }
}

void register_saved(py::module_& m) {
    py::class_<Saved>(m, "Saved",
                      "What a forward call leaves for its backward call: the statistics of each\n"
                      "channel, and what is needed to notice another input. Read-only.")
        .def_property_readonly("count", [](const Saved& s) { return s.count; })
        .def_property_readonly("mean", vector_property<&Saved::mean>)
        .def_property_readonly("m2", vector_property<&Saved::m2>)
        .def_property_readonly("var", vector_property<&Saved::var>)
        .def_property_readonly("rstd", vector_property<&Saved::rstd>)
        .def_property_readonly("eps", [](const Saved& s) { return s.eps; })
        .def_property_readonly("shape", [](const Saved& s) { return py::tuple(py::cast(s.shape)); })
        .def_property_readonly("dtype", [](const Saved& s) { return py::dtype(name_of(s.dtype)); })
        .def_property_readonly("channel_axis", [](const Saved& s) { return s.channel_axis; })
        .def_property_readonly("batch_statistics",
                               [](const Saved& s) { return s.batch_statistics; })
        .def("__repr__", [](const Saved& s) {
            return concat("<bnext.Saved of a ", name_of(s.dtype), " input of shape ",
                          shape_text(s.shape), ">");
        });
}

}  // namespace bnext::bindings

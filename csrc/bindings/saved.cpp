#include "bindings/saved.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "bindings/dlpack.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

using Row = std::span<const double> (Saved::*)() const;

template <Row Of>
py::array_t<double> row_property(const py::object& self) {
    const auto values = (py::cast<const Saved&>(self).*Of)();
    py::array_t<double> array(static_cast<py::ssize_t>(values.size()), values.data(), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

// All four rows at once, as an array of its own.
py::array_t<double> rows_of(const Saved& saved) {
    const auto channels = static_cast<py::ssize_t>(saved.channels());
    return py::array_t<double>({py::ssize_t{4}, channels}, saved.mean().data());
}

}  // namespace

std::uint64_t fingerprint_of(const Strided& x) {
    constexpr Index kSamples = 8;
    const Index size = x.size();
    if (size == 0) return 0;
    const auto* base = static_cast<const char*>(x.data);
    const Index item = size_of(x.dtype);
    const bool in_order = x.c_contiguous;
    std::uint64_t hash = 1469598103934665603ULL;
    for (Index s = 0; s < kSamples; ++s) {
        Index flat = size <= kSamples ? s % size : s * (size - 1) / (kSamples - 1);
        const char* p = base + (in_order ? flat * item : 0);
        for (std::size_t a = in_order ? 0 : x.shape.size(); a-- > 0;) {
            const Index extent = x.shape[a];
            p += (flat % extent) * x.byte_strides[a];
            flat /= extent;
        }
        std::uint64_t bits = 0;
        std::memcpy(&bits, p, static_cast<std::size_t>(item));
        hash = (hash ^ bits) * 1099511628211ULL;
        hash ^= hash >> 29;
    }
    return hash;
}

Saved::Saved(const Strided& x, Index axis, double epsilon)
    : dtype(x.dtype),
      channel_axis(axis),
      eps(epsilon),
      shape(x.shape.begin(), x.shape.end()),
      channels_(x.shape[static_cast<std::size_t>(axis)]),
      rows_(std::make_unique_for_overwrite<double[]>(4 * static_cast<std::size_t>(channels_))) {}

void Saved::has_given_statistics() {
    batch_statistics = false;
    std::ranges::fill(m2(), std::numeric_limits<double>::quiet_NaN());
}

void Saved::check_input(const Strided& x) const {
    if (!std::ranges::equal(shape, x.shape)) {
        value_error(concat("saved: made from an input of shape ", shape_text(shape),
                           ", got x of shape ", shape_text(x.shape)));
    }
    if (x.dtype != dtype) {
        value_error(
            concat("saved: made from a ", name_of(dtype), " input, got x of ", name_of(x.dtype)));
    }
    if (fingerprint_of(x) != fingerprint) {
        value_error("saved: made from another x, or x was changed since (their elements differ)");
    }
}

const Saved& take_saved(py::handle object) {
    if (!py::isinstance<Saved>(object)) {
        type_error(
            concat("saved: expected what batch_norm_forward returned, got ", type_name(object)));
    }
    return py::cast<const Saved&>(object);
}

namespace {

// What forward would leave, from the rows that it has left before.
Saved restored(py::handle x_object, const py::array_t<double, py::array::c_style>& rows,
               py::handle eps, py::handle channel_axis) {
    const Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    Saved saved(x.strided(), axis, take_eps(eps));
    if (rows.ndim() != 2 || rows.shape(0) != 4 || rows.shape(1) != saved.channels()) {
        value_error(concat("rows: expected shape (4, ", saved.channels(), "), got ",
                           py::cast<std::string>(py::str(rows.attr("shape")))));
    }
    std::copy_n(rows.data(), rows.size(), saved.mean().data());  // which the others follow
    saved.count = saved.channels() == 0 ? 0 : static_cast<Index>(x.size()) / saved.channels();
    saved.fingerprint = fingerprint_of(x.strided());
    return saved;
}

}  // namespace

void register_saved(py::module_& m) {
    m.def("restored", &restored, py::arg("x"), py::arg("rows").noconvert(), py::arg("eps"),
          py::arg("channel_axis"),
          "Saved, from x and its rows mean, m2, var and rstd as an array of float64.");
    py::class_<Saved>(m, "Saved",
                      "What a forward call leaves for its backward call: the statistics of each\n"
                      "channel, and what is needed to notice another input. Read-only.")
        .def_property_readonly("count", [](const Saved& s) { return s.count; })
        .def_property_readonly("mean", row_property<&Saved::mean>)
        .def_property_readonly("m2", row_property<&Saved::m2>)
        .def_property_readonly("var", row_property<&Saved::var>)
        .def_property_readonly("rstd", row_property<&Saved::rstd>)
        .def_property_readonly("rows", &rows_of)
        .def_property_readonly("eps", [](const Saved& s) { return s.eps; })
        .def_property_readonly("shape", [](const Saved& s) { return py::tuple(py::cast(s.shape)); })
        .def_property_readonly("dtype",
                               [](const Saved& s) { return dlpack::descr_for(s.dtype, "dtype"); })
        .def_property_readonly("channel_axis", [](const Saved& s) { return s.channel_axis; })
        .def_property_readonly("batch_statistics",
                               [](const Saved& s) { return s.batch_statistics; })
        .def("__repr__", [](const Saved& s) {
            return concat("<bnext.Saved of a ", name_of(s.dtype), " input of shape ",
                          shape_text(s.shape), ">");
        });
}

}  // namespace bnext::bindings

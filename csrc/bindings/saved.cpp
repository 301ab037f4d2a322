#include "bindings/saved.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "bindings/register.hpp"
#include "intake/arguments.hpp"
#include "intake/dlpack.hpp"

namespace bnext::bindings {

namespace py = pybind11;
using intake::take_eps;
using intake::type_name;

namespace {

template <Row kRow>
py::array_t<double> row_property(const py::object& self) {
    const auto values = py::cast<const Saved&>(self).row(kRow);
    py::array_t<double> array(static_cast<py::ssize_t>(values.size()), values.data(), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

// All rows at once, as an array of its own.
py::array_t<double> rows_of(const Saved& saved) {
    const auto channels = static_cast<py::ssize_t>(saved.channels());
    return py::array_t<double>({py::ssize_t{kRows}, channels}, saved.all().data());
}

}  // namespace

Saved::Saved(DType of, std::span<const Index> x, Index axis, double epsilon)
    : dtype(of),
      channel_axis(axis),
      eps(epsilon),
      shape(x.begin(), x.end()),
      channels_(x[static_cast<std::size_t>(axis)]),
      rows_(static_cast<std::size_t>(kRows * channels_)) {}

bool Saved::take(std::span<const double> rows) {
    if (rows.size() != rows_.size() && rows.size() + extent() != rows_.size()) return false;
    std::ranges::fill(row(Row::mean_low), 0.0);
    std::ranges::copy(rows, rows_.data());
    return true;
}

void Saved::has_given_statistics() {
    batch_statistics = false;
    std::ranges::fill(row(Row::m2), std::numeric_limits<double>::quiet_NaN());
    std::ranges::fill(row(Row::mean_low), 0.0);
}

void Saved::take_rows(const ArrayRef& rows) {
    ArrayRef row = rows;
    row.rank = 1;
    row.steps = rows.steps + 1;
    for (Index number = 0; number < kRows; ++number) {
        row.data = rows.as<char>() + number * rows.steps[0];
        read_doubles(row, this->row(static_cast<Row>(number)));
    }
}

const Saved& take_saved(py::handle object) {
    if (!py::isinstance<Saved>(object)) {
        type_error("saved: expected what batch_norm_forward returned, got ", type_name(object));
    }
    return py::cast<const Saved&>(object);
}

namespace {

// What a pickle has of it; nothing of the memory of this process.
py::tuple state_of(const Saved& s) {
    return py::make_tuple(
        name_of(s.dtype), s.batch_statistics, s.channel_axis, s.eps, s.count, s.fingerprint,
        s.shape, py::array_t<double>(static_cast<py::ssize_t>(s.all().size()), s.all().data()));
}

Saved of_state(const py::tuple& state) {
    if (state.size() != 8) value_error("state: expected that of a pickled Saved");
    const auto name = py::cast<std::string>(state[0]);
    const auto shape = py::cast<std::vector<Index>>(state[6]);
    const auto axis = py::cast<Index>(state[2]);
    const auto rows = py::cast<py::array_t<double, py::array::c_style>>(state[7]);
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
        if (name != name_of(dtype)) continue;
        if (axis < 0 || axis >= static_cast<Index>(shape.size())) break;
        Saved saved(dtype, shape, axis, take_eps(state[3]));
        saved.batch_statistics = py::cast<bool>(state[1]);
        saved.count = py::cast<Index>(state[4]);
        saved.fingerprint = py::cast<std::uint64_t>(state[5]);
        if (!saved.take({rows.data(), static_cast<std::size_t>(rows.size())})) break;
        return saved;
    }
    value_error("state: expected that of a pickled Saved");
}

}  // namespace

void register_saved(py::module_& m) {
    py::tuple names(kRows);
    for (std::size_t row = 0; row < names.size(); ++row) names[row] = kRowNames[row];
    m.attr("ROWS") = names;
    py::class_<Saved>(m, "Saved",
                      "What a forward call leaves for its backward call: the statistics of each\n"
                      "channel, and what is needed to notice another input. Read-only; its arrays\n"
                      "are views.")
        .def_property_readonly(
            "count", [](const Saved& s) { return s.count; },
            "Values per channel (int): the elements of x over C.")
        .def_property_readonly("mean", row_property<Row::mean>,
                               "Mean of each channel: array of float64, shape (C,).")
        .def_property_readonly(
            "mean_low", row_property<Row::mean_low>,
            "Low part of the mean, the rounding error of its float64: the exact mean is\n"
            "mean + mean_low. Array of float64, shape (C,); 0 but for float64 data.")
        .def_property_readonly(
            "m2", row_property<Row::m2>,
            "Sum of squared deviations from the mean, of each channel: array of\n"
            "float64, shape (C,); NaN where the statistics were given.")
        .def_property_readonly(
            "var", row_property<Row::var>,
            "Biased variance of each channel, m2 / count: array of float64, shape\n"
            "(C,).")
        .def_property_readonly(
            "rstd", row_property<Row::rstd>,
            "1 / sqrt(var + eps) of each channel, 0 where that has no value: array\n"
            "of float64, shape (C,).")
        .def_property_readonly("rows", &rows_of,
                               "mean, m2, var, rstd and mean_low as one array of float64, shape\n"
                               "(5, C): a copy.")
        .def_property_readonly(
            "eps", [](const Saved& s) { return s.eps; }, "What was added to the variance (float).")
        .def_property_readonly(
            "shape", [](const Saved& s) { return py::tuple(py::cast(s.shape)); },
            "Shape of x (tuple of int).")
        .def_property_readonly(
            "dtype", [](const Saved& s) { return intake::dlpack::descr_for(s.dtype, "dtype"); },
            "Dtype of x (numpy.dtype).")
        .def_property_readonly(
            "channel_axis", [](const Saved& s) { return s.channel_axis; },
            "Which axis of x has the channels (int >= 0).")
        .def_property_readonly(
            "batch_statistics", [](const Saved& s) { return s.batch_statistics; },
            "Whether the statistics are the batch's (bool): False where they were\n"
            "given, as running statistics are.")
        .def(py::pickle(&state_of, &of_state))
        // It cannot change, and is a copy of itself.
        .def("__copy__", [](const py::object& self) { return self; })
        .def(
            "__deepcopy__", [](const py::object& self, const py::object&) { return self; },
            py::arg("memo"))
        .def("__repr__", [](const Saved& s) {
            return concat("<bnext.Saved of a ", name_of(s.dtype), " input of shape ",
                          shape_text(s.shape), ">");
        });
}

}  // namespace bnext::bindings

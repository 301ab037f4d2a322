#include "bindings/device_saved.hpp"

#include "bindings/register.hpp"

namespace bnext::bindings {

const DeviceSaved& take_device_saved(py::handle object, const Engine& engine, Function function,
                                     const char* data) {
    if (is_saved(object)) {
        type_error("saved: made from an input on the CPU, got ", data, " on ",
                   std::string(engine.where));
    }
    if (!py::isinstance<DeviceSaved>(object)) {
        type_error("saved: expected what ", forward_of(is_of_cells(function)), " returned, got ",
                   intake::type_name(object));
    }
    const auto& saved = py::cast<const DeviceSaved&>(object);
    if (!saved.where.equal(engine.where)) {
        type_error("saved: expected an array on ", std::string(engine.where),
                   ", like x, got one on ", std::string(saved.where));
    }
    return saved;
}

namespace {

template <Row kRow>
py::object row(const DeviceSaved& saved) {
    return row_of(saved.rows, kRow);
}

}  // namespace

void register_device_saved(py::module_& m) {
    py::class_<DeviceSaved> type(
        py::handle(), "DeviceSaved",
        "What a forward call on a GPU leaves for its backward call: as `Saved`, on the device.\n\n"
        "Calls make it. Whether `x` has changed since is not noticed here, as it is on the CPU:\n"
        "to look at its elements would mean to wait for the device. Its arrays are of float64, of\n"
        "the library and on the device of `x`.");
    type.def_readonly("rows", &DeviceSaved::rows,
                      "All statistics, shape (5, C), or of group and instance normalization\n"
                      "(5, N, G): mean, m2, var, rstd, mean_low.")
        .def_property_readonly("mean", &row<Row::mean>, "Mean of each channel, shape (C,).")
        .def_property_readonly(
            "m2", &row<Row::m2>,
            "Sum of squared deviations from the mean, shape (C,); NaN where the\n"
            "statistics were given.")
        .def_property_readonly("var", &row<Row::var>, "Biased variance, shape (C,).")
        .def_property_readonly("rstd", &row<Row::rstd>, "1 / sqrt(var + eps), shape (C,).")
        .def_property_readonly("mean_low", &row<Row::mean_low>,
                               "Low part of the mean, shape (C,): the exact mean is mean +\n"
                               "mean_low.")
        .def_readonly("count", &DeviceSaved::count, "Values per channel (int).")
        .def_readonly("eps", &DeviceSaved::eps, "What was added to the variance (float).")
        .def_property_readonly(
            "shape", [](const DeviceSaved& s) { return intake::tuple_of_integers(s.shape); },
            "Shape of `x` (tuple of int).")
        .def_readonly("dtype", &DeviceSaved::dtype_object, "Dtype of `x`, as its library has it.")
        .def_property_readonly(
            "num_groups",
            [](const DeviceSaved& s) {
                return s.groups == 0 ? py::object(py::none()) : py::int_(s.groups);
            },
            "Of group and instance normalization, the groups G of channels (int), each\n"
            "with statistics of its own in each example, (N, G) in place of (C,); else None.")
        .def_readonly("channel_axis", &DeviceSaved::channel_axis,
                      "Which axis of `x` has the channels, from 0 (int).")
        .def_readonly("batch_statistics", &DeviceSaved::batch_statistics,
                      "Whether the statistics are the batch's (bool): False where they were given.")
        .def_property_readonly(
            "activation",
            [](const DeviceSaved& s) -> py::object {
                if (s.fused.activation == Activation::none) return py::none();
                return py::str(name_of(s.fused.activation));
            },
            "Name of the activation that followed (str), or None.")
        .def_property_readonly(
            "residual", [](const DeviceSaved& s) { return s.fused.residual; },
            "Whether a residual was added (bool).")
        .def_property_readonly(
            "reads_residual", [](const DeviceSaved& s) { return s.facts().reads_residual(); },
            "Whether the backward pass needs the residual again (bool): after any\n"
            "activation.")
        .def_property_readonly(
            "in_place", [](const DeviceSaved& s) { return s.fused.in_place; },
            "Whether y was written over x (bool): never, on a GPU.")
        .def("__repr__", [](const DeviceSaved& s) {
            return concat("<bnext.DeviceSaved of a ", name_of(s.dtype), " input of shape ",
                          shape_text(s.shape), " on ", std::string(s.where), ">");
        });
    type.def(py::pickle(  // for copies too
        [](const DeviceSaved& s) {
            return py::make_tuple(s.rows, s.where, s.dtype_object, name_of(s.dtype), s.channel_axis,
                                  s.eps, s.count, s.batch_statistics, s.shape, s.of_group,
                                  name_of(s.fused.activation), s.fused.negative_slope,
                                  s.fused.residual, s.of_z, s.groups);
        },
        [](const py::tuple& state) {
            constexpr std::size_t kBeforeActivations = 10, kBeforeCells = 14;
            const bool has_groups = state.size() == kBeforeCells + 1;
            if (state.size() != kBeforeActivations && state.size() != kBeforeCells && !has_groups) {
                value_error("state: expected the state of a pickled DeviceSaved");
            }
            Fused fused;
            py::object of_z = py::none();
            if (state.size() > kBeforeActivations) {
                const int number = activation_number(state[10].cast<std::string>());
                BNEXT_CHECK(number < kActivations, "state: expected the name of an activation");
                fused.activation = static_cast<Activation>(number);
                fused.negative_slope = state[11].cast<double>();
                fused.residual = state[12].cast<bool>();
                of_z = state[13];
            }
            return DeviceSaved{state[0],
                               state[1],
                               state[2],
                               dtype_named(state[3].cast<std::string>()),
                               state[4].cast<Index>(),
                               state[5].cast<double>(),
                               state[6].cast<Index>(),
                               state[7].cast<bool>(),
                               state[8].cast<std::vector<Index>>(),
                               state[9],
                               fused,
                               of_z,
                               has_groups ? state[14].cast<Index>() : 0};
        }));
    type.attr("__module__") = "bnext";
    m.attr("DeviceSaved") = type;
}

}  // namespace bnext::bindings

// Checks without a computation, and what layers ask of their input.
#include <pybind11/stl.h>

#include "bindings/fastcall.hpp"
#include "bindings/gpu.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kAsArray{
    "as_array", "x, name",
    "x, if it is an array of a library; else numpy.asarray, with an error that names it."};

py::object as_array(py::handle self, const Arguments<2>& arguments) {
    const auto [x, name] = arguments;
    if (self || intake::library_of(x) != nullptr) return py::reinterpret_borrow<py::object>(x);
    return intake::as_array(x, py::cast<std::string>(name).c_str());
}

constexpr Signature kInspect{"inspect", "x", "The shape and the name of the dtype of an array."};

py::object inspect(py::handle self, const Arguments<1>& arguments) {
    Intake call(Function::moments, false, engine_of(self));
    call.lead(Role::x, arguments[0]);
    const ArrayRef& x = call[Role::x];
    return py::make_tuple(intake::tuple_of_integers(x.shape()),
                          x.supported() ? name_of(x.dtype()) : x.type_text());
}

constexpr Signature kMisplaced{
    "misplaced", "array, like",
    "What is wrong with an array beside another one; empty if nothing is."};

py::object misplaced(py::handle self, const Arguments<2>& arguments) {
    const auto [array, like] = arguments;
    Intake call(Function::moments, false, engine_of(self));
    call.belongs_to(like);
    return py::str(call.misplaced(array));
}

constexpr Signature kSuits{"suits", "x, dtype, ranks, channel_axis, num_features",
                           "Whether x is an ndarray of that dtype object, of one of these ranks "
                           "(none: of any), and has so\n"
                           "many channels. Of other input a layer asks more, and has the errors."};

py::object suits(py::handle, const Arguments<5>& arguments) {
    // (Clang 14 lets no lambda refer to a structured binding.)
    const py::handle x = arguments[0], dtype = arguments[1], ranks = arguments[2];
    const py::handle channel_axis = arguments[3], num_features = arguments[4];
    const auto is = [](py::handle number, py::ssize_t value) {
        return PyLong_CheckExact(number.ptr()) != 0 && PyLong_AsSsize_t(number.ptr()) == value;
    };
    const auto answer = [&] {
        const auto shape = intake::shape_if_plain(x, dtype);
        if (!shape || PyTuple_Check(ranks.ptr()) == 0) return false;
        const auto rank = static_cast<py::ssize_t>(shape->size());
        const auto known = py::reinterpret_borrow<py::tuple>(ranks);
        bool fits = known.empty();
        for (std::size_t k = 0; k < known.size() && !fits; ++k) fits = is(known[k], rank);
        if (!fits || PyLong_CheckExact(channel_axis.ptr()) == 0) return false;
        const py::ssize_t given = PyLong_AsSsize_t(channel_axis.ptr());
        const py::ssize_t axis = given < 0 ? given + rank : given;
        return axis >= 0 && axis < rank &&
               is(num_features, (*shape)[static_cast<std::size_t>(axis)]);
    };
    const bool does = answer();
    if (PyErr_Occurred() != nullptr) PyErr_Clear();  // of numbers beyond all arrays
    return py::bool_(does);
}

void check_count(py::handle count, const char* name) {
    if (count.is_none()) return;
    Extents extents;
    ArrayRef counter;
    intake::refer_to_counter(count, extents, counter);
    check_counter(counter, name);
}

}  // namespace

void register_questions(const py::object& m, py::handle engine) {
    Fast<2, kAsArray, as_array>::add_to(m, engine);
    Fast<1, kInspect, inspect>::add_to(m, engine);
    Fast<2, kMisplaced, misplaced>::add_to(m, engine);
}

void register_checks(py::module_& m) {
    Fast<5, kSuits, suits>::add_to(m);
    m.def(
        "refuse_tracer", [](py::handle x, const char* name) { intake::as_array(x, name); },
        py::arg("x"), py::arg("name"), "Raises the error for a tracer of JAX.");
    m.def("check_count", &check_count, py::arg("count"),
          py::arg("name") = name_of(Role::num_batches_tracked),
          "TypeError or ValueError unless it is None or a layer's count of batches.");
    m.def("check_axis", &intake::take_axis, py::arg("channel_axis"), py::arg("rank"),
          "The axis, counted from the front.");
    m.def(
        "check_more_than_one",
        [](const std::vector<Index>& shape, Index count) { check_more_than_one(shape, count); },
        py::arg("shape"), py::arg("count"), "ValueError for one value per channel.");
    m.def("is_tracer", &intake::is_tracer, py::arg("x"), "Whether x is a tracer of JAX.");
    m.def("is_data_dtype", &intake::is_data_dtype, py::arg("dtype"),
          "Whether x may be of this dtype.");
    m.def("check_eps", &intake::take_eps, py::arg("eps"), "eps, if it is a finite number >= 0.");
    m.def(
        "check_activation", [](const py::object& name) { (void)intake::take_activation(name); },
        py::arg("activation"), "Refuses what names no activation.");
    m.def(
        "check_negative_slope",
        [](const py::object& object) {
            const double slope = intake::take_real(object, "negative_slope");
            check_negative_slope(slope);
            return slope;
        },
        py::arg("negative_slope"), "The slope, if it is a finite number.");
    m.def(
        "check_in_place",
        [](const py::object& activation, double slope) {
            check_invertible({intake::take_activation(activation), slope});
        },
        py::arg("activation"), py::arg("negative_slope"),
        "ValueError for an activation whose backward pass cannot do without x.");
    m.def("check_momentum", &intake::take_momentum, py::arg("momentum"),
          "momentum, if it is finite.");
}

}  // namespace bnext::bindings

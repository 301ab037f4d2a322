// Checks without a computation: what layers ask of their input, and what every call on a GPU asks
// of its arrays, which Python has described.
#include <pybind11/stl.h>

#include "bindings/register.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {
namespace {

namespace py = pybind11;
using intake::Intake;

py::object as_array(py::handle x, const char* name) {
    if (intake::library_of(x) != nullptr) return py::reinterpret_borrow<py::object>(x);
    return intake::as_array(x, name);
}

py::tuple inspect(py::handle x_object) {
    Intake call(Function::moments);
    call.lead(Role::x, x_object);
    const ArrayRef& x = call[Role::x];
    py::tuple shape(x.rank);
    for (std::size_t a = 0; a < x.rank; ++a) shape[a] = py::int_(x.extents[a]);
    return py::make_tuple(shape, x.supported() ? name_of(x.dtype()) : x.type_text());
}

std::string misplaced(py::handle array, py::handle like) {
    Intake call(Function::moments);
    call.belongs_to(like);
    return call.misplaced(array);
}

void check_count(py::handle count, const char* name) {
    if (count.is_none()) return;
    Extents extents;
    ArrayRef counter;
    intake::refer_to_counter(count, extents, counter);
    check_counter(counter, name);
}

// By the name of the call, its arrays by the names of their roles, and (dtype, shape, axis, whether
// the statistics are a batch's) of what a forward call has left; the axis from the front.
Index check_call(const std::string& pass_name, const py::dict& arrays, const py::object& saved,
                 py::handle eps, py::handle channel_axis, py::handle momentum, py::handle count) {
    Intake call(function_named(pass_name));
    FromForward facts{};
    std::vector<Index> shape;
    if (!saved.is_none()) {
        const auto of = py::cast<py::tuple>(saved);
        shape = py::cast<std::vector<Index>>(of[1]);
        facts = {dtype_named(py::cast<std::string>(of[0])), shape, py::cast<Index>(of[2]),
                 py::cast<bool>(of[3]), nullptr};
        call.call.from_forward = &facts;
    }
    for (const auto& [name, array] : arrays) {
        call.read_view(role_named(py::cast<std::string>(name)), array);
    }
    if (saved.is_none()) call.axis(channel_axis);
    call.eps(eps);
    call.momentum(momentum);
    call.count(count);
    check(call.call);
    return call.call.axis();
}

}  // namespace

void register_checks(py::module_& m) {
    m.def("as_array", &as_array, py::arg("x"), py::arg("name"),
          "x, if it is an array of a library; else numpy.asarray, with an error that names it.");
    m.def("inspect", &inspect, py::arg("x"), "The shape and the name of the dtype of an array.");
    m.def("misplaced", &misplaced, py::arg("array"), py::arg("like"),
          "What is wrong with an array beside another one; empty if nothing is.");
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
    m.def("check_momentum", &intake::take_momentum, py::arg("momentum"),
          "momentum, if it is finite.");
    m.def("check_call", &check_call, py::arg("call"), py::arg("arrays"),
          py::arg("saved") = py::none(), py::kw_only(), py::arg("eps") = 0.0,
          py::arg("channel_axis") = 1, py::arg("momentum") = 0.0,
          py::arg("num_batches_tracked") = py::none(),
          "Raises what the call would of arrays that are described, on whatever device.");
}

}  // namespace bnext::bindings

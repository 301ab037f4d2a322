// The barrier of threads as Python calls it. A member that comes last, and so does not wait, keeps
// the GIL; the others let go of it before they wait and take it back after.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/call.hpp"
#include "core/error.hpp"
#include "intake/arguments.hpp"
#include "sync/thread_group.hpp"

namespace bnext::bindings {

namespace py = pybind11;

namespace {

using sync::Direction;
using sync::ThreadGroup;
using Float64 = py::array_t<double, py::array::c_style>;

struct Interrupted {};  // the Python error is set

bool in_main_thread() {
    const auto main = py::module_::import("threading").attr("main_thread")().attr("ident");
    return py::cast<unsigned long>(main) == PyThread_get_thread_ident();
}

// Waiting without the GIL. Python's signal handlers, and so KeyboardInterrupt, run in the main
// thread alone; the others need not wake for them.
class WithoutGil final : public sync::Waiter {
public:
    void begin() override { state_ = PyEval_SaveThread(); }
    void end() noexcept override { take_gil_back(state_); }
    bool poll() override {
        take_gil_back(state_);
        const bool interrupted = PyErr_CheckSignals() != 0;
        const bool again = !interrupted && in_main_thread();
        state_ = PyEval_SaveThread();
        if (interrupted) throw Interrupted{};
        return again;
    }

private:
    PyThreadState* state_ = nullptr;
};

const double* take_row(const Float64& row, const char* name, Index channels) {
    if (row.ndim() != 1 || row.shape(0) != channels) {
        value_error(concat(name, ": expected shape (", channels, ",), got ",
                           py::cast<std::string>(py::str(row.attr("shape")))));
    }
    return row.data();
}

// The fields of bnext.groups.exchange.Header, but for the owner.
sync::Header header_of(Index layer, Index step, const std::string& direction, Index channels,
                       const std::string& dtype) {
    auto which = Direction::forward;
    for (const auto each : {Direction::backward, Direction::double_backward}) {
        if (direction == sync::name_of(each)) which = each;
    }
    return {layer, step, which, channels, dtype_named(dtype)};
}

std::string difference(const py::tuple& got, const py::tuple& expected) {
    using Fields = std::tuple<Index, Index, std::string, Index, std::string>;
    return sync::difference(std::apply(header_of, py::cast<Fields>(got)),
                            std::apply(header_of, py::cast<Fields>(expected)));
}

py::tuple exchange(ThreadGroup& group, Index rank, sync::Ticket ticket, Index layer, Index step,
                   const std::string& direction, Index channels, const std::string& dtype,
                   std::uintptr_t owner, double count, const Float64& first, const Float64& second,
                   const std::optional<Float64>& mean_low) {
    if (!(count >= 0)) value_error("count: expected a number >= 0, got ", count);
    const sync::Contribution brought{
        header_of(layer, step, direction, channels, dtype),
        owner,
        count,
        {take_row(first, "first", channels), take_row(second, "second", channels),
         mean_low ? take_row(*mean_low, "mean_low", channels) : nullptr}};
    py::array_t<double> merged_first(channels), merged_second(channels);
    sync::Rows<double> into{merged_first.mutable_data(), merged_second.mutable_data()};
    py::object merged_low = py::none();
    if (mean_low) {
        py::array_t<double> row(channels);
        into[2] = row.mutable_data();
        merged_low = std::move(row);
    }
    WithoutGil waiter;
    try {
        const sync::Merged merged = group.exchange(rank, ticket, brought, into, waiter);
        return py::make_tuple(intake::number_of(merged.count), std::move(merged_first),
                              std::move(merged_second), merged.generation, merged.shared,
                              std::move(merged_low));
    } catch (const Interrupted&) {
        throw py::error_already_set();
    }
}

}  // namespace

void register_sync(py::module_& m) {
    static py::exception<sync::GroupFailure> failure(m, "GroupFailure", PyExc_RuntimeError);
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const sync::GroupFailure& error) {  // its arguments: the reason, the rank
            PyErr_SetObject(failure.ptr(), py::make_tuple(error.what(), error.rank).ptr());
        }
    });
    m.def("difference", &difference, py::arg("got"), py::arg("expected"),
          "In what two headers differ, in words.");
    py::class_<ThreadGroup>(m, "ThreadGroup", "The barrier of threads; bnext.sync wraps it.")
        .def(py::init<Index, double>(), py::arg("size"), py::arg("timeout"))
        .def_property_readonly("size", &ThreadGroup::size)
        .def_property_readonly("timeout", &ThreadGroup::timeout)
        .def_property_readonly("broken", &ThreadGroup::broken)
        .def("enter", &ThreadGroup::enter, py::arg("rank"))
        .def("leave", &ThreadGroup::leave, py::arg("rank"), py::arg("ticket"))
        .def("fail", &ThreadGroup::fail, py::arg("rank"), py::arg("ticket"), py::arg("message"))
        .def("reset", &ThreadGroup::reset, py::call_guard<py::gil_scoped_release>())
        .def("exchange", &exchange, py::arg("rank"), py::arg("ticket"), py::arg("layer"),
             py::arg("step"), py::arg("direction"), py::arg("channels"), py::arg("dtype"),
             py::arg("owner"), py::arg("count"), py::arg("first").noconvert(),
             py::arg("second").noconvert(), py::arg("mean_low").noconvert() = py::none(),
             "count, both rows, the number of the exchange, whether the layer is shared, and the\n"
             "low part of the mean where one was brought.");
}

}  // namespace bnext::bindings

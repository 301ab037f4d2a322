// bnext's errors as Python's, for each module by itself.
#include <pybind11/pybind11.h>

#include "bindings/register.hpp"
#include "core/error.hpp"

namespace bnext::bindings {

void register_errors(pybind11::module_& m) {
    static pybind11::exception<Error> layout(m, "LayoutError", PyExc_ValueError);
    pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            const auto kind_of = [&]() -> PyObject* {
                switch (error.kind()) {
                    case Error::Kind::type: return PyExc_TypeError;
                    case Error::Kind::value:
                    case Error::Kind::saved: return PyExc_ValueError;
                    case Error::Kind::layout: break;
                }
                return layout.ptr();
            };
            PyErr_SetString(kind_of(), error.what());
        }
    });
}

}  // namespace bnext::bindings

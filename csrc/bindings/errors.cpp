// bnext's errors as Python's, for each module by itself.
#include <pybind11/pybind11.h>

#include "bindings/register.hpp"
#include "core/error.hpp"

namespace bnext::bindings {

void register_errors() {
    pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            const bool of_type = error.kind() == Error::Kind::type;
            PyErr_SetString(of_type ? PyExc_TypeError : PyExc_ValueError, error.what());
        }
    });
}

}  // namespace bnext::bindings

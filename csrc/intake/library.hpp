// Libraries of arrays besides NumPy: what bnext.arrays knows of each, and for those with DLPack's
// table of C functions, a way to plain tensors without the interpreter.
#pragma once

#include <optional>

#include "intake/table.hpp"

namespace bnext::intake {

struct Library {
    py::object object;         // bnext.arrays.library.Library
    py::object count_writes;   // its function
    py::object torch;          // the module, where it has the table; also what follows
    py::object empty_like;     // its function
    py::object empty_strided;  // another
    // Whether a profiler records what the library allocates, as it does in this thread now; null
    // where the library does not say.
    bool (*memory_is_profiled)() = nullptr;
    std::optional<TensorReader> reader;  // of tensors on the CPU
    std::optional<Autograd> autograd;    // what is recorded is not plain
};

// The device of a call whose arrays are on a GPU, all of one library.
struct Gpu {
    const Library* library;
    std::int32_t index;
    py::str where;                       // as errors call it
    py::object device_of;                // the device of an address
    std::optional<TensorReader> reader;  // of plain tensors there, where the library has the table
};

// The library of an array; null for NumPy's, and for what only NumPy makes arrays of.
const Library* library_of(py::handle array);

// The one that an object of bnext.arrays.library describes.
const Library* library_for(const py::object& object);

// The function of Python that finds the library of an array of a type that was not seen before.
void find_libraries_by(py::object function);

}  // namespace bnext::intake

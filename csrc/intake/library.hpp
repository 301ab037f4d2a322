// Libraries of arrays besides NumPy: what bnext.arrays knows of each, and for those with DLPack's
// table of C functions, a way to plain tensors without the interpreter.
#pragma once

#include <optional>

#include "intake/table.hpp"

namespace bnext::intake {

struct Library {
    py::object object;                   // bnext.arrays.library.Library
    py::object count_writes;             // its function
    py::object empty_like;               // the library's, where it has the table
    std::optional<TensorReader> reader;  // where it has the table
    std::optional<Autograd> autograd;    // there as well: what is recorded is not plain

    // A plain tensor on the CPU: no array is made of it.
    bool take_plain(py::handle tensor, TensorView& view, bool asks_autograd) const {
        if (!reader || !reader->take(tensor, view)) return false;
        return !asks_autograd || !(autograd->has_dual_level() || autograd->records(tensor));
    }
};

// The library of an array; null for NumPy's, and for what only NumPy makes arrays of.
const Library* library_of(py::handle array);

// The function of Python that finds the library of an array of a type that was not seen before.
void find_libraries_by(py::object function);

}  // namespace bnext::intake

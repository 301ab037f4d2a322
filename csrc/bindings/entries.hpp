// Entries of the dicts of Python objects. Every reference is borrowed but where a py::object holds
// it, and no error is left set: what cannot be looked up is as if it were not there.
#pragma once

#include <pybind11/pybind11.h>

namespace bnext::bindings {

namespace py = pybind11;

// The dict of an object's entries; null without.
inline py::object attributes_of(PyObject* object) {
    auto found = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr));
    if (!found) PyErr_Clear();
    return found;
}

inline PyObject* entry(PyObject* dict, PyObject* name) {
    PyObject* const found = PyDict_GetItemWithError(dict, name);
    if (found == nullptr) PyErr_Clear();
    return found;
}

}  // namespace bnext::bindings

// Whether a tree of Python objects still has what was found in it once: a module of PyTorch, as
// fused forward passes ask before every call. In Python these questions take longer than a small
// call of the kernels.
#include "bindings/entries.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"
#include "core/error.hpp"

namespace bnext::bindings {
namespace {

template <class F>
bool each_of(PyObject* tuple, F&& f) {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(tuple); ++k) {
        if (!f(PyTuple_GET_ITEM(tuple, k))) return false;
    }
    return true;
}

// Of values of the same simple type, which compare without running code of others.
bool are_equal(PyObject* value, PyObject* expected) {
    if (value == expected) return true;
    if (value == nullptr || Py_TYPE(value) != Py_TYPE(expected)) return false;
    const bool is_simple =
        PyFloat_CheckExact(value) || PyLong_CheckExact(value) || PyUnicode_CheckExact(value);
    return is_simple && PyObject_RichCompareBool(value, expected, Py_EQ) == 1;
}

// (names of what is missing or an empty dict, names and values of what has values)
bool agrees(PyObject* dict, PyObject* empty, PyObject* values) {
    return each_of(empty,
                   [&](PyObject* name) {
                       PyObject* const found = entry(dict, name);
                       return found == nullptr ||
                              (PyDict_Check(found) != 0 && PyDict_GET_SIZE(found) == 0);
                   }) &&
           each_of(values, [&](PyObject* pair) {
               return are_equal(entry(dict, PyTuple_GET_ITEM(pair, 0)), PyTuple_GET_ITEM(pair, 1));
           });
}

struct Names {
    PyObject* modules = PyUnicode_InternFromString("_modules");
};
const Names& names() {
    static const Names all;
    return all;
}

// A descendant's entries; null where there is none of that path, or it is of another type.
py::object descendant(const py::object& module, PyObject* path, PyObject* type) {
    py::object entries = module;
    PyObject* found = nullptr;
    const bool there = each_of(path, [&](PyObject* name) {
        PyObject* const children = entry(entries.ptr(), names().modules);
        if (children == nullptr || PyDict_Check(children) == 0) return false;
        found = entry(children, name);
        if (found == nullptr) return false;
        entries = attributes_of(found);
        return static_cast<bool>(entries);
    });
    const bool fits =
        there && (found == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(found)) == type);
    return fits ? entries : py::object();
}

// Whether a module's children, without those that are None, have these names in this order.
bool has_children(PyObject* entries, PyObject* expected) {
    PyObject* const children = entry(entries, names().modules);
    if (children == nullptr || PyDict_Check(children) == 0) return false;
    Py_ssize_t at = 0, count = 0;
    for (PyObject *name = nullptr, *child = nullptr;
         PyDict_Next(children, &at, &name, &child) != 0;) {
        if (Py_IsNone(child) != 0) continue;
        if (count == PyTuple_GET_SIZE(expected)) return false;
        if (!are_equal(name, PyTuple_GET_ITEM(expected, count++))) return false;
    }
    return count == PyTuple_GET_SIZE(expected);
}

constexpr Signature kUnchanged{
    "unchanged", "module, elsewhere, within, children",
    "Whether a module has what was found in it; False also where that is not clear.\n"
    "`elsewhere`: (dict, empty, values) each; `within`: (path, type, empty, values) each, of\n"
    "the entries of a descendant of that type; `children`: the names of those there are.\n"
    "`empty` has names that are missing or of an empty dict, `values` (name, value)."};

py::object unchanged(py::handle, const Arguments<4>& arguments) {
    for (std::size_t k = 1; k < 4; ++k) {
        if (PyTuple_Check(arguments[k].ptr()) == 0) {
            type_error(name_of(kUnchanged, k), ": expected a tuple, got ",
                       Py_TYPE(arguments[k].ptr())->tp_name);
        }
    }
    const py::object entries = attributes_of(arguments[0].ptr());
    const auto of = [](PyObject* tuple, Py_ssize_t k) { return PyTuple_GET_ITEM(tuple, k); };
    const bool holds =
        entries &&
        each_of(arguments[1].ptr(),
                [&](PyObject* each) { return agrees(of(each, 0), of(each, 1), of(each, 2)); }) &&
        has_children(entries.ptr(), arguments[3].ptr()) &&
        each_of(arguments[2].ptr(), [&](PyObject* each) {
            const py::object found = descendant(entries, of(each, 0), of(each, 1));
            return found && agrees(found.ptr(), of(each, 2), of(each, 3));
        });
    return py::bool_(holds);
}

}  // namespace

void register_unchanged(py::module_& m) { Fast<4, kUnchanged, unchanged>::add_to(m); }

}  // namespace bnext::bindings

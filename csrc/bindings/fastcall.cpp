#include "bindings/fastcall.hpp"

#include "core/error.hpp"

namespace bnext::bindings {

Parameters::Parameters(const Signature& signature, std::size_t size)
    : function_(signature.function),
      doc_(concat(signature.function, "(", signature.parameters, ")\n--\n\n", signature.doc)),
      size_(size) {
    for (std::size_t k = 0; k < size; ++k) {
        const std::string_view name = bindings::name_of(signature, k);
        if (name.data()[name.size()] != '=') required_ = k + 1;
        names_[k] = PyUnicode_InternFromString(std::string(name).c_str());
        if (names_[k] == nullptr) throw py::error_already_set();
    }
}

std::size_t Parameters::index_of(PyObject* name) const {
    for (std::size_t k = 0; k < size_; ++k) {
        if (names_[k] == name) return k;
    }
    for (std::size_t k = 0; k < size_; ++k) {  // of a string that was made
        if (PyUnicode_Compare(names_[k], name) == 0) return k;
    }
    type_error(function_, "() got an unexpected keyword argument '", std::string(py::str(name)),
               "'");
}

void Parameters::assign(PyObject* const* given, Py_ssize_t positional, PyObject* names,
                        py::handle* arguments) const {
    const auto count = static_cast<std::size_t>(positional);
    if (count > size_) {
        type_error(function_, "() takes at most ", size_, " positional arguments (", count,
                   " given)");
    }
    for (std::size_t k = 0; k < count; ++k) arguments[k] = given[k];
    const std::size_t named =
        names == nullptr ? 0 : static_cast<std::size_t>(PyTuple_GET_SIZE(names));
    std::size_t in_order = count;  // arguments that are where their parameters are
    for (; in_order < std::min(count + named, size_); ++in_order) {
        if (PyTuple_GET_ITEM(names, in_order - count) != names_[in_order]) break;
        arguments[in_order] = given[in_order];
    }
    for (std::size_t k = in_order; k < count + named; ++k) {
        const std::size_t index = index_of(PyTuple_GET_ITEM(names, k - count));
        if (arguments[index]) {
            type_error(function_, "() got multiple values for argument '",
                       std::string(py::str(names_[index])), "'");
        }
        arguments[index] = given[k];
    }
    for (std::size_t k = in_order; k < required_; ++k) {
        if (!arguments[k]) {
            type_error(function_, "() missing required argument: '",
                       std::string(py::str(names_[k])), "'");
        }
    }
}

}  // namespace bnext::bindings

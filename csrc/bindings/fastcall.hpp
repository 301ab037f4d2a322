// Functions of a module that take their arguments by position or by name, without an array or a
// dict of them in between: names that the interpreter has interned are compared by address.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <string_view>

namespace bnext::bindings {

namespace py = pybind11;

template <std::size_t N>
using Arguments = std::array<py::handle, N>;

// The names of a function and its parameters. What is optional is last, and null where it is not
// given.
struct Signature {
    const char* function;
    const char* parameters;  // as Python writes them: "x, weight, out=None"
    const char* doc;
};

// The name of parameter k; empty behind the last.
constexpr std::string_view name_of(const Signature& signature, std::size_t k) {
    std::string_view rest = signature.parameters;
    for (; k > 0 && !rest.empty(); --k) {
        const std::size_t end = rest.find(", ");
        rest = end == rest.npos ? std::string_view() : rest.substr(end + 2);
    }
    return rest.substr(0, rest.find_first_of("=,"));
}
// The place of a parameter; where there is none of the name, the place behind the last.
constexpr std::size_t place_of(const Signature& signature, std::string_view name) {
    std::size_t k = 0;
    for (std::string_view each = name_of(signature, k); !each.empty() && each != name;) {
        each = name_of(signature, ++k);
    }
    return k;
}
constexpr std::size_t size_of(const Signature& signature) { return place_of(signature, ""); }
constexpr bool has(const Signature& signature, std::string_view name) {
    return place_of(signature, name) < size_of(signature);
}

class Parameters {
public:
    Parameters(const Signature& signature, std::size_t size);

    // Throws TypeError as the interpreter words it.
    void assign(PyObject* const* given, Py_ssize_t positional, PyObject* names,
                py::handle* arguments) const;
    [[nodiscard]] const char* function() const { return function_; }
    [[nodiscard]] const char* doc() const { return doc_.c_str(); }

private:
    [[nodiscard]] std::size_t index_of(PyObject* name) const;

    static constexpr std::size_t kMost = 16;
    const char* function_;
    std::string doc_;
    std::size_t size_, required_ = 0;
    std::array<PyObject*, kMost> names_{};  // interned, and kept until the process ends
};

// Runs f, and lets the interpreter know what it throws.
template <class F>
PyObject* translated(const F& f) {
    try {
        return py::object(f()).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
#ifdef __GLIBCXX__
    } catch (abi::__forced_unwind&) {
        throw;
#endif
    } catch (...) {
        py::detail::try_translate_exceptions();
    }
    return nullptr;
}

// `body` of a signature, as the interpreter calls it. Both are constants of the program. `self` is
// what the function belongs to besides its module: null, or an engine for a GPU.
template <std::size_t N, const Signature& signature,
          py::object (*body)(py::handle self, const Arguments<N>& arguments)>
struct Fast {
    static const Parameters& parameters() {
        static const auto* const all = new Parameters(signature, N);  // NOLINT: never destroyed
        return *all;
    }
    static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t positional,
                          PyObject* names) {
        return translated([&] {
            Arguments<N> arguments;
            parameters().assign(given, positional, names, arguments.data());
            return body(self, arguments);
        });
    }
    static void add_to(const py::object& m, py::handle self = {}) {
        static PyMethodDef method{parameters().function(),
                                  reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call)),
                                  METH_FASTCALL | METH_KEYWORDS, parameters().doc()};
        PyObject* const function = PyCFunction_NewEx(&method, self.ptr(), m.attr("__name__").ptr());
        if (function == nullptr) throw py::error_already_set();
        m.attr(method.ml_name) = py::reinterpret_steal<py::object>(function);
    }
};

}  // namespace bnext::bindings

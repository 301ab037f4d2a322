#include "intake/library.hpp"

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "intake/numpy.hpp"

namespace bnext::intake {
namespace {

// Both live until the process ends, as the types that were seen do.
struct Known {
    py::object find;
    std::unordered_map<PyObject*, const Library*> of_type;
    std::vector<const Library*> all;
};

Known& known() {
    static auto* const storage = new Known;  // NOLINT: never destroyed
    return *storage;
}

}  // namespace

const Library* library_for(const py::object& object) {
    for (const Library* library : known().all) {
        if (library->object.is(object)) return library;
    }
    auto library = std::make_unique<Library>();
    library->object = object;
    library->count_writes = object.attr("count_writes");
    if (const py::object torch = object.attr("plain_of"); !torch.is_none()) {
        try {
            library->reader.emplace(torch, dlpack::kCPU);
            library->autograd.emplace(torch);
            library->torch = torch;
            library->empty_like = torch.attr("empty_like");
            library->empty_strided = torch.attr("empty_strided");
            library->memory_is_profiled = reinterpret_cast<bool (*)()>(
                py::cast<std::uintptr_t>(object.attr("memory_is_profiled")));
        } catch (const Error&) {
            library->reader.reset();  // a version without the table
        }
    }
    return known().all.emplace_back(library.release());
}

void find_libraries_by(py::object function) { known().find = std::move(function); }

const Library* library_of(py::handle array) {
    if (is_plain_array(array)) return nullptr;
    auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(array.ptr()));
    auto& of_type = known().of_type;
    if (const auto found = of_type.find(type); found != of_type.end()) return found->second;
    if (!known().find) return nullptr;
    const py::object object = known().find(array);
    const Library* library = object.is_none() ? nullptr : library_for(object);
    Py_INCREF(type);  // its address stays its own
    of_type.emplace(type, library);
    return library;
}

}  // namespace bnext::intake

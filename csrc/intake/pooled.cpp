#include "intake/pooled.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>

#include "cpu/pool.hpp"

namespace bnext::intake {
namespace {

namespace py = pybind11;

// NumPy's PyDataMem_Handler, version 1 (numpy/ndarraytypes.h). Its layout and kSetHandler are part
// of NumPy's binary interface since 1.22.
struct Handler {
    char name[127];
    std::uint8_t version;
    struct Allocator {
        void* context;
        void* (*malloc)(void* context, std::size_t bytes);
        void* (*calloc)(void* context, std::size_t count, std::size_t bytes);
        void* (*realloc)(void* context, void* block, std::size_t bytes);
        void (*free)(void* context, void* block, std::size_t bytes);
    } allocator;
};
static_assert(sizeof(Handler) == 128 + 5 * sizeof(void*));
constexpr std::size_t kSetHandler = 304;

Handler handler = {
    "bnext_pool",
    1,
    {
        nullptr,
        [](void*, std::size_t bytes) { return cpu::pool_allocate(bytes); },
        [](void*, std::size_t count, std::size_t bytes) -> void* {
            std::size_t all = 0;
            if (__builtin_mul_overflow(count, bytes, &all)) return nullptr;
            void* block = cpu::pool_allocate(all);
            return block != nullptr ? std::memset(block, 0, all) : nullptr;
        },
        [](void*, void* block, std::size_t bytes) { return cpu::pool_resize(block, bytes); },
        [](void*, void* block, std::size_t) { cpu::pool_release(block); },
    },
};

// Both live until the process ends, as arrays may.
PyObject* handler_object = nullptr;
PyObject* (*set_handler)(PyObject*) = nullptr;

}  // namespace

void prepare_pool() {
    const auto table = py::detail::import_numpy_core_submodule("multiarray").attr("_ARRAY_API");
    auto** functions = static_cast<void**>(PyCapsule_GetPointer(table.ptr(), nullptr));
    if (functions == nullptr) throw py::error_already_set();
    set_handler = reinterpret_cast<PyObject* (*)(PyObject*)>(functions[kSetHandler]);
    handler_object = PyCapsule_New(&handler, "mem_handler", nullptr);
    if (handler_object == nullptr) throw py::error_already_set();
}

FromPool::FromPool(std::size_t bytes) {
    if (bytes < cpu::kWorthPooling) return;
    before_ = py::reinterpret_steal<py::object>(set_handler(handler_object));
    if (!before_) throw py::error_already_set();
}

FromPool::~FromPool() {
    if (!before_) return;
    const py::error_scope error;  // keeps an error of the array's creation
    Py_XDECREF(set_handler(before_.ptr()));
}

}  // namespace bnext::intake

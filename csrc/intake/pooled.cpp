#include "intake/pooled.hpp"

#include <dlfcn.h>
#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/pool.hpp"
#include "cpu/small_blocks.hpp"

namespace bnext::intake {
namespace {

namespace py = pybind11;

// NumPy's PyDataMem_Handler, version 1 (numpy/ndarraytypes.h), as far as blocks from one source
// need it.
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

template <void* (*allocate)(std::size_t), void* (*resize)(void*, std::size_t),
          void (*release)(void*)>
constexpr Handler::Allocator kAllocator{
    nullptr,
    [](void*, std::size_t bytes) { return allocate(bytes); },
    [](void*, std::size_t count, std::size_t bytes) -> void* {
        std::size_t all = 0;
        if (__builtin_mul_overflow(count, bytes, &all)) return nullptr;
        void* block = allocate(all);
        return block != nullptr ? std::memset(block, 0, all) : nullptr;
    },
    [](void*, void* block, std::size_t bytes) { return resize(block, bytes); },
    [](void*, void* block, std::size_t) { release(block); },
};

Handler pool = {"bnext_pool", 1,
                kAllocator<&cpu::pool_allocate, &cpu::pool_resize, &cpu::pool_release>};
Handler small = {"bnext_small", 1,
                 kAllocator<&cpu::small_allocate, &cpu::small_resize, &cpu::small_release>};

// Capsules of the two; they live until the process ends, as arrays may.
PyObject *pool_capsule = nullptr, *small_capsule = nullptr;

constexpr const char* kCapsule = "mem_handler";

PyObject* capsule_of(Handler& handler) {
    PyObject* const capsule = PyCapsule_New(&handler, kCapsule, nullptr);
    if (capsule == nullptr) throw py::error_already_set();
    return capsule;
}

// An array object to its last field, which is part of NumPy's binary interface since 1.22
// (PyArrayObject_fields in numpy/ndarraytypes.h).
struct ArrayFields {
    py::detail::PyArray_Proxy first;
    PyObject* weak_references;
    void* buffer_info;
    PyObject* handler;
};

ArrayFields& fields_of(py::handle array) { return *reinterpret_cast<ArrayFields*>(array.ptr()); }

// Lets tracemalloc know of memory. Headers before Python 3.13 declare it as a function of C++'s.
int (*track)(unsigned domain, std::uintptr_t address, std::size_t bytes) = nullptr;
constexpr unsigned kDomain = 389047;  // NumPy's

// NumPy keeps blocks below this size, in bytes, by itself.
constexpr std::size_t kWorthKeeping = 1024;

}  // namespace

void prepare_pool() {
    const py::object array = py::module_::import("numpy").attr("empty")(1);
    const bool is_known = Py_TYPE(array.ptr())->tp_basicsize >= Py_ssize_t{sizeof(ArrayFields)} &&
                          fields_of(array).handler != nullptr &&
                          PyCapsule_IsValid(fields_of(array).handler, kCapsule) != 0;
    if (!is_known) {
        throw py::import_error("numpy: expected arrays that name the handler of their memory");
    }
    track = reinterpret_cast<decltype(track)>(dlsym(RTLD_DEFAULT, "PyTraceMalloc_Track"));
    if (track == nullptr) throw py::import_error("expected an interpreter with tracemalloc");
    pool_capsule = capsule_of(pool);
    small_capsule = capsule_of(small);
}

ArrayMemory memory_for(std::size_t bytes) {
    if (bytes >= cpu::kWorthPooling) return {cpu::pool_allocate(bytes), &cpu::pool_release};
    return {bytes < kWorthKeeping ? nullptr : cpu::small_allocate(bytes), &cpu::small_release};
}

void give(ArrayMemory memory, std::size_t bytes, py::handle array) {
    fields_of(array).handler = Py_NewRef(bytes < cpu::kWorthPooling ? small_capsule : pool_capsule);
    fields_of(array).first.flags |= py::detail::npy_api::NPY_ARRAY_OWNDATA_;
    track(kDomain, reinterpret_cast<std::uintptr_t>(memory.release()), bytes);
}

}  // namespace bnext::intake

// Results of a call: memory that the library of x takes over.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <span>

#include "cpu/pool.hpp"
#include "cpu/small_blocks.hpp"
#include "intake/library.hpp"
#include "intake/numpy.hpp"

namespace bnext::intake {

// Memory of a result, and its description. Its owner gives it back in whatever thread, with or
// without the GIL, at any time: nothing of Python is touched.
struct Result {
    dlpack::ManagedVersioned managed{};
    std::array<std::int64_t, kMaxRank> shape{}, strides{};
    void* pooled = nullptr;  // null: the data follow this in the same block

    static void give_back(dlpack::ManagedVersioned* managed) {
        auto* result = static_cast<Result*>(managed->context);
        cpu::pool_release(result->pooled);
        result->~Result();
        cpu::small_release(result);
    }
};

constexpr std::size_t kLine = 64;  // bytes: results begin on one
constexpr std::size_t kHead = (sizeof(Result) + kLine - 1) / kLine * kLine;

struct GiveBack {
    void operator()(Result* result) const { Result::give_back(&result->managed); }
};
using OwnedResult = std::unique_ptr<Result, GiveBack>;

inline OwnedResult new_result(DType dtype, std::span<const Index> shape, AxisStrides strides) {
    auto bytes = static_cast<std::size_t>(size_of(dtype));
    for (const Index extent : shape) bytes *= static_cast<std::size_t>(extent);
    const bool pooled = bytes >= cpu::kWorthPooling;
    void* block = cpu::small_allocate(pooled ? kHead : kHead + bytes);
    if (block == nullptr) throw std::bad_alloc();
    OwnedResult result(new (block) Result());
    result->managed.context = result.get();
    result->managed.deleter = &Result::give_back;
    result->managed.version = dlpack::ManagedVersioned::kVersion;
    std::ranges::copy(shape, result->shape.begin());
    std::ranges::copy(strides, result->strides.begin());
    if (pooled) {
        result->pooled = cpu::pool_allocate(bytes);
        if (result->pooled == nullptr) throw std::bad_alloc();
    }
    result->managed.tensor = {.data = pooled ? result->pooled : static_cast<char*>(block) + kHead,
                              .device = {dlpack::kCPU, 0},
                              .ndim = static_cast<std::int32_t>(shape.size()),
                              .dtype = dlpack::type_of(dtype),
                              .shape = result->shape.data(),
                              .strides = result->strides.data(),
                              .byte_offset = 0};
    return result;
}

// A result that is being computed: an array of the library's or NumPy's, or memory of bnext's.
struct Fresh {
    py::object array;
    OwnedResult own;
    void* data = nullptr;
    bool is_library = false;  // whether the array is the library's
};

// Makes results of one library, or NumPy's: in memory from the pool, as a rule. Where a profiler
// records what the library allocates, the library makes them, and the record is complete.
class Results {
public:
    Results() = default;
    explicit Results(const Library* library) : library_(library) {}
    // In the library's own memory, like x, where that can be: by its `empty_like`.
    Results(const Library* library, py::handle x) : library_(library), like_(x) {}

    // Not initialised; strides in elements.
    [[nodiscard]] Fresh make(DType dtype, std::span<const Index> shape, AxisStrides strides) const;
    [[nodiscard]] py::object give(Fresh fresh) const;

    template <class T>
    [[nodiscard]] py::object vector(std::span<const double> values,
                                    const double* factor = nullptr) const {
        const auto size = static_cast<Index>(values.size());
        Fresh fresh = make(DTypeOf<T>::value, {&size, 1}, std::array<Index, 1>{1});
        round_each(values, factor, static_cast<T*>(fresh.data));
        return give(std::move(fresh));
    }

private:
    const Library* library_ = nullptr;
    py::handle like_;
};

}  // namespace bnext::intake

// Tensors on the CPU as operations see them, and the memory and description of their results.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "bindings/arrays.hpp"
#include "bindings/pooled.hpp"
#include "bindings/saved.hpp"
#include "bindings/tensor_reader.hpp"
#include "core/problem.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool.hpp"

namespace bnext::bindings::tensors {

constexpr Index kChannelAxis = 1;

inline Strided strided(const TensorView& x) {
    return {x.data(), x.dtype, x.shape(), {x.byte_strides.data(), x.rank()}, x.order == Order::c};
}

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
        std::free(result);  // NOLINT: as it was allocated
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
    const std::size_t room = pooled ? kHead : (kHead + bytes + kLine - 1) / kLine * kLine;
    void* block = std::aligned_alloc(kLine, room);
    if (block == nullptr) throw std::bad_alloc();
    OwnedResult result(new (block) Result());
    result->managed.context = result.get();
    result->managed.deleter = &Result::give_back;
    result->managed.version = dlpack::ManagedVersioned::kVersion;
    std::ranges::copy(shape, result->shape.begin());
    std::ranges::copy(strides, result->strides.begin());
    dlpack::Tensor& tensor = result->managed.tensor;
    tensor.data = static_cast<char*>(block) + kHead;
    if (pooled) {
        tensor.data = result->pooled = cpu::pool_allocate(bytes);
        if (tensor.data == nullptr) throw std::bad_alloc();
    }
    tensor.device = {dlpack::kCPU, 0};
    tensor.ndim = static_cast<std::int32_t>(shape.size());
    tensor.dtype = dlpack::type_of(dtype);
    tensor.shape = result->shape.data();
    tensor.strides = result->strides.data();
    return result;
}

inline OwnedResult like(const TensorView& x) { return new_result(x.dtype, x.shape(), x.strides()); }

template <class T>
OwnedResult vector_result(std::span<const double> values, const double* factor = nullptr) {
    const auto size = static_cast<Index>(values.size());
    OwnedResult result = new_result(DTypeOf<T>::value, std::array{size}, std::array<Index, 1>{1});
    round_each(values, factor, static_cast<T*>(result->managed.tensor.data));
    return result;
}

template <class T>
OwnedResult rows_result(Index rows, Index size) {
    return new_result(DTypeOf<T>::value, std::array{rows, size}, std::array<Index, 2>{size, 1});
}

template <class T>
cpu::View<T> view_of(const OwnedResult& result, const Strides& strides) {
    return {static_cast<T*>(result->managed.tensor.data), strides};
}

template <class T>
cpu::View<const T> view_of(const TensorView& x, const Strides& strides) {
    return {static_cast<const T*>(x.data()), strides};
}

inline Description described(const TensorView& x, std::size_t operands) {
    const std::array<AxisStrides, kMaxOperands> strides{x.strides(), x.strides(), x.strides()};
    return describe(x.dtype, x.shape(), kChannelAxis, {strides.data(), operands});
}

}  // namespace bnext::bindings::tensors

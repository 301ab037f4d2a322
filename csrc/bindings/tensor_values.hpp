// Tensors of a library with DLPack's table of C functions, as operations see them: those that come
// in, and the memory and description of those that go out.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "bindings/arrays.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/pooled.hpp"
#include "bindings/saved.hpp"
#include "core/problem.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool.hpp"

namespace bnext::bindings::tensors {

constexpr std::size_t kMaxRank = 8;
constexpr Index kChannelAxis = 1;

// --- Tensors that come in.
// ------------------------------------------------------------------------

enum class Order : std::uint8_t { none, c, channels_last };

// A tensor on the CPU, as the library describes it. Its extents are the tensor's own memory, which
// is its library's to change once the GIL is given away.
struct TensorView {
    dlpack::Tensor tensor;
    DType dtype = DType::float32;
    Order order = Order::none;  // in which it is dense
    Index size = 0;
    std::array<Index, kMaxRank> byte_strides{};

    [[nodiscard]] std::size_t rank() const { return static_cast<std::size_t>(tensor.ndim); }
    [[nodiscard]] std::span<const Index> shape() const { return {tensor.shape, rank()}; }
    [[nodiscard]] AxisStrides strides() const { return {tensor.strides, rank()}; }
    [[nodiscard]] void* data() const {
        return static_cast<char*>(tensor.data) + tensor.byte_offset;
    }
    [[nodiscard]] bool aligned_to(Index bytes) const {
        return reinterpret_cast<std::uintptr_t>(data()) % static_cast<std::uintptr_t>(bytes) == 0;
    }
    [[nodiscard]] Strided strided() const {
        return {data(), dtype, shape(), {byte_strides.data(), rank()}, order == Order::c};
    }
};

// In which order a tensor is dense, with the strides that an allocator would give it: where an axis
// has one element, others would do as well, but results would have to be given them back.
inline Order order_of(const TensorView& x) {
    const auto shape = x.shape();
    const auto strides = x.strides();
    Index expected = 1;
    bool is_c = true;
    for (std::size_t a = x.rank(); a-- > 0;) {
        is_c = is_c && strides[a] == expected;
        expected *= shape[a];
    }
    if (is_c) return Order::c;
    if (x.rank() != 4 && x.rank() != 5) return Order::none;
    if (strides[kChannelAxis] != 1) return Order::none;
    expected = shape[kChannelAxis];
    for (std::size_t a = x.rank(); a-- > 2;) {
        if (strides[a] != expected) return Order::none;
        expected *= shape[a];
    }
    return strides[0] == expected ? Order::channels_last : Order::none;
}

// --- Tensors that go out.
// -------------------------------------------------------------------------

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

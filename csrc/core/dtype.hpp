// The element types that data can have. 16-bit types will join this list; their parameters and
// statistics will stay float32, which is why the three aliases below are separate.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnext {

using Index = std::int64_t;  // extents, strides (in elements) and offsets; never 32 bits

enum class DType : std::uint8_t { float32, float64 };

constexpr Index size_of(DType dtype) { return dtype == DType::float32 ? 4 : 8; }
constexpr const char* name_of(DType dtype) {
    return dtype == DType::float32 ? "float32" : "float64";
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
    static constexpr DType value = DType::float32;
    using Param = float;    // weight, bias, running statistics
    using Compute = float;  // arithmetic of the elementwise phases; reductions are always double
};
template <>
struct DTypeOf<double> {
    static constexpr DType value = DType::float64;
    using Param = double;
    using Compute = double;
};

template <class T>
using Param = typename DTypeOf<T>::Param;
template <class T>
using Compute = typename DTypeOf<T>::Compute;

// Calls f with a value of the C++ type that stands behind `dtype`.
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
    return dtype == DType::float32 ? f(float{}) : f(double{});
}

}  // namespace bnext

// The element types that data can have, and for each the type of its parameters and of the
// elementwise arithmetic: float32 for 16-bit data, so that nothing is rounded to 16 bits but
// results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.hpp"

namespace bnext {

using Index = std::int64_t;  // extents, strides (in elements) and offsets; never 32 bits

enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };

constexpr Index size_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return 4;
        case DType::float64: return 8;
        case DType::float16:
        case DType::bfloat16: return 2;
    }
    return 0;
}

constexpr const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return "float32";
        case DType::float64: return "float64";
        case DType::float16: return "float16";
        case DType::bfloat16: return "bfloat16";
    }
    return "?";
}

// 16-bit floating-point numbers as they lie in memory. Arithmetic is done on packs of floats
// (cpu/simd.inl.hpp); here is what single values need. Conversions round to nearest even.
struct float16 {  // IEEE 754 binary16
    std::uint16_t bits;

    float16() = default;
    BNEXT_FORCE_INLINE explicit float16(float value) {
        std::uint32_t word = 0;
        __builtin_memcpy(&word, &value, sizeof word);
        const std::uint32_t sign = (word >> 16) & 0x8000U;
        const std::uint32_t magnitude = word & 0x7fffffffU;
        std::uint32_t half = 0;
        if (magnitude > 0x7f800000U) {  // NaN, made quiet
            half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
        } else if (magnitude >= 0x47800000U) {  // 2^16 and more
            half = 0x7c00U;
        } else if (magnitude < 0x38800000U) {  // below 2^-14: the unit of 0.5 is that of the result
            float shifted = 0;
            __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
            shifted += 0.5F;
            __builtin_memcpy(&half, &shifted, sizeof half);
            half -= 0x3f000000U;
        } else {
            half = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
        }
        bits = static_cast<std::uint16_t>(sign | half);
    }
    BNEXT_FORCE_INLINE explicit operator float() const {
        const std::uint32_t magnitude = bits & 0x7fffU;
        std::uint32_t word = (magnitude << 13) + (112U << 23);
        if (magnitude >= 0x7c00U) word += 112U << 23;  // infinite or NaN
        float value = 0;
        if (magnitude < 0x400U) {  // subnormal
            word += 1U << 23;
            __builtin_memcpy(&value, &word, sizeof value);
            value -= 0x1p-14F;
            __builtin_memcpy(&word, &value, sizeof word);
        }
        word |= static_cast<std::uint32_t>(bits & 0x8000U) << 16;
        __builtin_memcpy(&value, &word, sizeof value);
        return value;
    }
    BNEXT_FORCE_INLINE explicit operator double() const { return static_cast<float>(*this); }
};

struct bfloat16 {  // the upper half of a float32
    std::uint16_t bits;

    bfloat16() = default;
    BNEXT_FORCE_INLINE explicit bfloat16(float value) {
        std::uint32_t word = 0;
        __builtin_memcpy(&word, &value, sizeof word);
        if ((word & 0x7fffffffU) > 0x7f800000U) {  // NaN, made quiet
            bits = static_cast<std::uint16_t>((word >> 16) | 0x40U);
        } else {
            bits = static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16) & 1U)) >> 16);
        }
    }
    BNEXT_FORCE_INLINE explicit operator float() const {
        const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
        float value = 0;
        __builtin_memcpy(&value, &word, sizeof value);
        return value;
    }
    BNEXT_FORCE_INLINE explicit operator double() const { return static_cast<float>(*this); }
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
    static constexpr DType value = DType::float32;
    using Param = float;    // weight, bias, running statistics
    using Compute = float;  // arithmetic on single values; whatever is summed ends in double
};
template <>
struct DTypeOf<double> {
    static constexpr DType value = DType::float64;
    using Param = double;
    using Compute = double;
};
template <>
struct DTypeOf<float16> {
    static constexpr DType value = DType::float16;
    using Param = float;
    using Compute = float;
};
template <>
struct DTypeOf<bfloat16> {
    static constexpr DType value = DType::bfloat16;
    using Param = float;
    using Compute = float;
};

template <class T>
using Param = typename DTypeOf<T>::Param;
template <class T>
using Compute = typename DTypeOf<T>::Compute;

// Whether the mean of such data has a low part besides its double (statistics.hpp).
template <class T>
inline constexpr bool kHasMeanLow = DTypeOf<T>::value == DType::float64;

// Calls f with a value of the C++ type that stands behind `dtype`.
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float64: return f(double{});
        case DType::float16: return f(float16{});
        case DType::bfloat16: return f(bfloat16{});
        case DType::float32: break;
    }
    return f(float{});
}

// The dtype of the parameters and statistics that go with data of `dtype`.
constexpr DType param_dtype(DType dtype) {
    return dtype == DType::float64 ? DType::float64 : DType::float32;
}

}  // namespace bnext

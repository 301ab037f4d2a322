// The element types that data can have, and for each the type of its parameters and of the
// elementwise arithmetic: float32 for 16-bit data, so that nothing is rounded to 16 bits but
// results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.hpp"
#include "core/values.hpp"

namespace bnext {

using Index = std::int64_t;  // extents, strides (in elements) and offsets; never 32 bits

enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };

// In the order of DType.
inline constexpr Index kSizes[] = {4, 8, 2, 2};
inline constexpr const char* kDTypeNames[] = {"float32", "float64", "float16", "bfloat16"};

constexpr Index size_of(DType dtype) { return kSizes[static_cast<std::size_t>(dtype)]; }
constexpr const char* name_of(DType dtype) { return kDTypeNames[static_cast<std::size_t>(dtype)]; }

// Between the bits of a float16 (IEEE 754 binary16) and of a float32, rounded to nearest even and
// with quiet NaN. Words are single ones or vectors, and Floats are floats or vectors as well.
template <class Floats, class Word>
BNEXT_FORCE_INLINE Word half_of_float_word(const Word& word) {
    const Word magnitude = word & 0x7fffffffU;
    const Word normal = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    // Below 2^-14: 0.5 has the unit of the result.
    const Word tiny = bits_as<Word>(bits_as<Floats>(magnitude) + 0.5F) - 0x3f000000U;
    Word half = magnitude < 0x38800000U ? tiny : normal;
    half = magnitude >= 0x47800000U ? 0x7c00U - Word{} : half;  // 2^16 and more
    half = magnitude > 0x7f800000U ? 0x7e00U | ((magnitude >> 13) & 0x3ffU) : half;  // NaN
    return half | ((word >> 16) & 0x8000U);
}
template <class Floats, class Word>
BNEXT_FORCE_INLINE Word float_word_of_half(const Word& half) {
    const Word magnitude = half & 0x7fffU;
    const Word normal = (magnitude << 13) + (112U << 23);
    const Word tiny = bits_as<Word>(bits_as<Floats>(normal + (1U << 23)) - 0x1p-14F);
    Word word = magnitude >= 0x7c00U ? normal + (112U << 23) : normal;  // infinite or NaN
    word = magnitude < 0x400U ? tiny : word;                            // subnormal
    return word | ((half & 0x8000U) << 16);
}

// 16-bit floating-point numbers as they lie in memory. Arithmetic is done on packs of floats
// (cpu/simd.inl.hpp); here is what single values need. Conversions round to nearest even.
struct float16 {
    std::uint16_t bits;

    float16() = default;
    BNEXT_FORCE_INLINE explicit float16(float value)
        : bits(static_cast<std::uint16_t>(
              half_of_float_word<float>(bits_as<std::uint32_t>(value)))) {}
    BNEXT_FORCE_INLINE explicit operator float() const {
        return bits_as<float>(float_word_of_half<float>(std::uint32_t{bits}));
    }
    BNEXT_FORCE_INLINE explicit operator double() const { return static_cast<float>(*this); }
};

struct bfloat16 {  // the upper half of a float32
    std::uint16_t bits;

    bfloat16() = default;
    BNEXT_FORCE_INLINE explicit bfloat16(float value) {
        const auto word = bits_as<std::uint32_t>(value);
        if ((word & 0x7fffffffU) > 0x7f800000U) {  // NaN, made quiet
            bits = static_cast<std::uint16_t>((word >> 16) | 0x40U);
        } else {
            bits = static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16) & 1U)) >> 16);
        }
    }
    BNEXT_FORCE_INLINE explicit operator float() const {
        return bits_as<float>(std::uint32_t{bits} << 16);
    }
    BNEXT_FORCE_INLINE explicit operator double() const { return static_cast<float>(*this); }
};

template <DType dtype, class P>
struct DataType {
    static constexpr DType value = dtype;
    using Param = P;    // weight, bias, running statistics
    using Compute = P;  // arithmetic on single values; whatever is summed ends in double
};
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> : DataType<DType::float32, float> {};
template <>
struct DTypeOf<double> : DataType<DType::float64, double> {};
template <>
struct DTypeOf<float16> : DataType<DType::float16, float> {};
template <>
struct DTypeOf<bfloat16> : DataType<DType::bfloat16, float> {};

template <class T>
using Param = typename DTypeOf<T>::Param;
template <class T>
using Compute = typename DTypeOf<T>::Compute;

// The bits of a significand, with the leading one; and the smallest number that has all of them.
constexpr int significant_bits(DType dtype) {
    constexpr int kBits[] = {24, 53, 11, 8};
    return kBits[static_cast<std::size_t>(dtype)];
}
constexpr double smallest_normal(DType dtype) {
    constexpr double kNumbers[] = {0x1p-126, 0x1p-1022, 0x1p-14, 0x1p-126};
    return kNumbers[static_cast<std::size_t>(dtype)];
}

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

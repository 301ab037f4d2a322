#include "core/array_ref.hpp"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/error.hpp"

namespace bnext {
namespace {

// First and one past the last byte that the array can touch.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const ArrayRef& array) {
    auto begin = reinterpret_cast<std::uintptr_t>(array.data);
    auto end = begin + static_cast<std::uintptr_t>(array.item());
    for (std::size_t a = 0; a < array.rank; ++a) {
        if (array.extents[a] == 0) return {begin, begin};
        const Index reach = array.steps[a] * (array.extents[a] - 1);
        (reach < 0 ? begin : end) += static_cast<std::uintptr_t>(reach);
    }
    return {begin, end};
}

}  // namespace

void complete(ArrayRef& array, Extents& extents) {
    const Index item = array.item();
    const int shift = std::countr_zero(static_cast<std::uint64_t>(item));
    const auto address = reinterpret_cast<std::uintptr_t>(array.data);
    bool fits = (address & static_cast<std::uintptr_t>(item - 1)) == 0;
    Index* strides = extents.take(array.rank);
    Index expected = item;
    array.c_contiguous = true;
    for (std::size_t a = array.rank; a-- > 0;) {
        const bool alone = array.extents[a] == 1;
        strides[a] = array.steps[a] >> shift;
        fits = fits && (alone || (array.steps[a] & (item - 1)) == 0);
        array.c_contiguous = array.c_contiguous && (alone || array.steps[a] == expected);
        expected *= array.extents[a];
    }
    array.strides = strides;
    array.viewable = fits && array.supported();
}

bool may_meet(const ArrayRef& a, const ArrayRef& b) {
    const auto [a_begin, a_end] = bounds(a);
    const auto [b_begin, b_end] = bounds(b);
    return a_begin != a_end && b_begin != b_end && a_end > b_begin && b_end > a_begin;
}

bool same_places(const ArrayRef& a, const ArrayRef& b) {
    if (a.data != b.data || a.element != b.element || !std::ranges::equal(a.shape(), b.shape())) {
        return false;
    }
    for (std::size_t k = 0; k < a.rank; ++k) {
        if (a.extents[k] > 1 && a.steps[k] != b.steps[k]) return false;
    }
    return true;
}

std::uint64_t fingerprint_of(const ArrayRef& x) {
    constexpr Index kSamples = 8;
    const Index size = x.size();
    if (size == 0) return 0;
    return with_dtype(x.dtype(), [&](auto value) {
        std::uint64_t hash = 1469598103934665603ULL;
        for (Index s = 0; s < kSamples; ++s) {
            Index flat = size <= kSamples ? s % size : s * (size - 1) / (kSamples - 1);
            const char* p = x.as<char>() + (x.c_contiguous ? flat * Index{sizeof value} : 0);
            for (std::size_t a = x.c_contiguous ? 0 : x.rank; a-- > 0;) {
                p += (flat % x.extents[a]) * x.steps[a];
                flat /= x.extents[a];
            }
            std::uint64_t bits = 0;
            std::memcpy(&bits, p, sizeof value);
            hash = (hash ^ bits) * 1099511628211ULL;
            hash ^= hash >> 29;
        }
        return hash;
    });
}

void read_doubles(const ArrayRef& vector, std::span<double> values) {
    with_dtype(vector.dtype(), [&](auto type) {
        const auto* from = static_cast<const char*>(vector.data);
        const auto read = [&](Index step) {
            for (double& value : values) {
                std::memcpy(&type, from, sizeof type);
                value = static_cast<double>(type);
                from += step;
            }
        };
        constexpr Index kDense = sizeof type;  // a constant, for which a compiler makes vectors
        if (vector.steps[0] != kDense) {
            read(vector.steps[0]);
        } else if constexpr (std::is_same_v<decltype(type), double>) {
            std::memcpy(values.data(), from, values.size_bytes());
        } else {
            read(kDense);
        }
    });
}

DType dtype_named(const std::string& name) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
        if (name == name_of(dtype)) return dtype;
    }
    value_error("dtype: expected float32, float64, float16 or bfloat16, got ", name);
}

std::string shape_text(std::span<const Index> shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        text += concat(i > 0 ? ", " : "", shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

std::string number_text(double value) {
    std::array<char, 32> text{};
    const double size = std::abs(value);
    const bool fixed = size < 1e16 && (size >= 1e-4 || size == 0);
    const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value, format).ptr;
    std::string result(text.data(), end);
    if (fixed && result.find('.') == std::string::npos) result += ".0";
    return std::isnan(value) ? "nan" : result;
}

}  // namespace bnext

// The smooth activations and their first and second derivatives, of single values and of packs,
// against long double: over dense steps where results change, and at random places of all
// magnitudes. Packs of floats from all over their range also against packs of double. Built once
// for each instruction set. With fused multiply-add packs have the bits of single values. It prints
// the largest errors in units in the last place, and where they are.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/dtype.hpp"
#include "core/second_derivatives.hpp"
#include "core/smooth_activations.hpp"
#include "core/tiling.hpp"
#include "require.hpp"

namespace bnext::packs {
namespace {

template <int I>
struct Number {
    BNEXT_FORCE_INLINE constexpr operator int() const { return I; }
};

#include "cpu/simd.inl.hpp"

}  // namespace
}  // namespace bnext::packs

namespace {

using namespace bnext;
using Real = long double;

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

bool machine_has_the_instructions() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

// --- by definition ------------------------------------------------------------------------------

constexpr Real kPi = 3.14159265358979323846264338327950288L;

Real sigmoid(Real z) {
    const Real e = std::exp(-std::abs(z));
    return (z < 0 ? e : 1) / (1 + e);
}
Real normal_below(Real z) { return std::erfc(-z / std::sqrt(2.0L)) / 2; }
Real normal_density(Real z) { return std::exp(-z * z / 2) / std::sqrt(2 * kPi); }
Real cubic(Real z) { return 2 * std::sqrt(2 / kPi) * (z + 0.044715L * z * z * z); }
Real cubic_slope(Real z) { return 2 * std::sqrt(2 / kPi) * (1 + 3 * 0.044715L * z * z); }

// Of a finite z.
Real value(Activation activation, Real z) {
    switch (activation) {
        case Activation::silu: return z * sigmoid(z);
        case Activation::hardswish: return z <= -3 ? -0.0L : z * std::min(z + 3, 6.0L) / 6;
        case Activation::gelu: return z * normal_below(z);
        case Activation::gelu_tanh: return z * sigmoid(cubic(z));
        case Activation::sigmoid: return sigmoid(z);
        default: return std::tanh(z);
    }
}
Real derivative(Activation activation, Real z) {
    switch (activation) {
        case Activation::silu: return sigmoid(z) * (1 + z * sigmoid(-z));
        case Activation::hardswish: return z <= -3 ? 0 : (z < 3 ? z / 3 + 0.5L : 1);
        case Activation::gelu: return normal_below(z) + z * normal_density(z);
        case Activation::gelu_tanh: {
            const Real w = cubic(z);
            return sigmoid(w) * (1 + z * cubic_slope(z) * sigmoid(-w));
        }
        case Activation::sigmoid: return sigmoid(z) * sigmoid(-z);
        default: return 4 * sigmoid(2 * z) * sigmoid(-2 * z);
    }
}

// (1 - e) / (1 + e) of e = exp(-w)
Real half_tanh(Real w) { return std::tanh(w / 2); }
Real curvature(Activation activation, Real z) {
    switch (activation) {
        case Activation::silu: return sigmoid(z) * sigmoid(-z) * (2 - z * half_tanh(z));
        case Activation::hardswish: return z > -3 && z < 3 ? 1 / 3.0L : 0;
        case Activation::gelu: return normal_density(z) * (2 - z * z);
        case Activation::gelu_tanh: {
            const Real w = cubic(z), slope = cubic_slope(z);
            const Real bent = 2 * std::sqrt(2 / kPi) * 6 * 0.044715L * z;
            return sigmoid(w) * sigmoid(-w) *
                   (2 * slope + z * bent - z * slope * slope * half_tanh(w));
        }
        case Activation::sigmoid: return -sigmoid(z) * sigmoid(-z) * half_tanh(z);
        default: return -8 * sigmoid(2 * z) * sigmoid(-2 * z) * half_tanh(2 * z);
    }
}

struct Case {
    Activation activation;
    Real largest_derivative, largest_curvature;
};
constexpr Case kCases[] = {
    {Activation::silu, 1.0998L, 0.5L},     {Activation::hardswish, 1.5L, 1 / 3.0L},
    {Activation::gelu, 1.1289L, 0.7979L},  {Activation::gelu_tanh, 1.1289L, 0.7979L},
    {Activation::sigmoid, 0.25L, 0.0963L}, {Activation::tanh, 1.0L, 0.7699L}};
constexpr Real kUnits = 4;             // what is promised
constexpr Real kUnitsOfCurvature = 8;  // of its maximum
constexpr Real kUnitsUnfused = 5;      // without fused multiply-add

// --- places -------------------------------------------------------------------------------------

template <class T>
std::vector<T> places(std::mt19937_64& random) {
    using Limits = std::numeric_limits<T>;
    std::vector<T> all;
    for (const T z : {T{0}, Limits::denorm_min(), Limits::min(), Limits::epsilon(), T(0.5), T(1),
                      T(3), T(6), T(1e10), Limits::max() / 8, Limits::max()}) {
        for (const T sign : {T{1}, T{-1}}) {
            for (const T near : {std::nextafter(z, T{0}), z, std::nextafter(z, T(2) * z)}) {
                if (std::isfinite(near)) all.push_back(sign * near);
            }
        }
    }
    // Where everything has its limits, where results become subnormal, and where they matter.
    const Real far = sizeof(T) == 4 ? 120 : 820;
    for (const Real end : {far, far / 20, Real{3}}) {
        constexpr int kSteps = 100'000;
        std::uniform_real_distribution<Real> within(-1, 1);
        for (int k = -kSteps; k <= kSteps; ++k) {
            all.push_back(static_cast<T>(end * (k + within(random)) / kSteps));
        }
    }
    for (int k = 0; k < 100'000; ++k) {  // all magnitudes alike
        const auto word = random();
        const T z = bits_as<T>(static_cast<packs::WordOf<T>>(word));
        if (std::isfinite(z)) all.push_back(z);
    }
    while (all.size() % kLanes != 0) all.push_back(T(-1.25));
    return all;
}

// --- errors -------------------------------------------------------------------------------------

template <class T>
Real unit_of(Real result) {
    using Limits = std::numeric_limits<T>;
    int exponent = 0;
    std::frexp(result, &exponent);
    return std::ldexp(Real{1}, std::max(exponent, Limits::min_exponent) - Limits::digits);
}

template <class T>
struct Worst {
    Real units = 0;
    T z = 0;

    void take(T place, Real error) {
        if (!(error <= units)) units = error, z = place;  // NaN as well
    }
};

template <class T>
struct Results {
    T value[kLanes], derivative[kLanes], curvature[kLanes];
};
template <class T>
Results<T> of_values(Activation activation, const T* z) {
    Results<T> results;
    for (int k = 0; k < kLanes; ++k) {
        results.value[k] = smooth(activation, z[k]);
        results.derivative[k] = smooth_derivative(activation, z[k]);
        results.curvature[k] = second_derivative(activation, z[k]);
    }
    return results;
}
template <class T>
Results<T> of_pack(Activation activation, const T* z) {
    Results<T> results;
    const packs::Pack<T> pack = packs::load(z);
    packs::store(results.value, smooth(activation, pack));
    packs::store(results.derivative, smooth_derivative(activation, pack));
    packs::store(results.curvature, second_derivative(activation, pack));
    return results;
}

template <class T>
bool are_same(T a, T b) {
    using Word = packs::WordOf<T>;
    return bits_as<Word>(a) == bits_as<Word>(b) || (std::isnan(a) && std::isnan(b));
}

template <class T>
void check(const Case& of, const std::vector<T>& z) {
    const Activation activation = of.activation;
    Worst<T> values, derivatives, pack_values, pack_derivatives, curvatures;
    const Real least = of.largest_derivative * std::numeric_limits<T>::epsilon() / 2;
    for (std::size_t k = 0; k < z.size(); k += kLanes) {
        const Results<T> single = of_values(activation, &z[k]), pack = of_pack(activation, &z[k]);
        for (std::size_t i = 0; i < kLanes; ++i) {
            const T place = z[k + i];
            const Real y = value(activation, place), slope = derivative(activation, place);
            const Real unit = unit_of<T>(y);
            const Real slope_unit = std::max(unit_of<T>(slope), least / kUnits);
            values.take(place, std::abs(single.value[i] - y) / unit);
            derivatives.take(place, std::abs(single.derivative[i] - slope) / slope_unit);
            const Real curve = curvature(activation, place);
            const Real curve_unit = of.largest_curvature * std::numeric_limits<T>::epsilon() / 2;
            curvatures.take(place, std::abs(single.curvature[i] - curve) / curve_unit);
            curvatures.take(place, std::abs(pack.curvature[i] - curve) / curve_unit);
            if constexpr (kFused) {
                REQUIRE(are_same(single.value[i], pack.value[i]));
                REQUIRE(are_same(single.derivative[i], pack.derivative[i]));
                REQUIRE(are_same(single.curvature[i], pack.curvature[i]));
            } else {
                pack_values.take(place, std::abs(pack.value[i] - y) / unit);
                pack_derivatives.take(place, std::abs(pack.derivative[i] - slope) / slope_unit);
            }
        }
    }
    std::printf(
        "%-8s %-10s value %5.2Lf at %-12.6g derivative %5.2Lf at %-12.6g "
        "second %5.2Lf at %-12.6g",
        DTypeOf<T>::value == DType::float32 ? "float32" : "float64", name_of(activation),
        values.units, static_cast<double>(values.z), derivatives.units,
        static_cast<double>(derivatives.z), curvatures.units, static_cast<double>(curvatures.z));
    if constexpr (!kFused) {
        std::printf(" packs %5.2Lf at %-12.6g and %5.2Lf at %.6g", pack_values.units,
                    static_cast<double>(pack_values.z), pack_derivatives.units,
                    static_cast<double>(pack_derivatives.z));
    }
    std::puts("");
    std::fflush(stdout);
    REQUIRE(values.units <= kUnits && derivatives.units <= kUnits);
    REQUIRE(curvatures.units <= kUnitsOfCurvature);
    REQUIRE(pack_values.units <= kUnitsUnfused && pack_derivatives.units <= kUnitsUnfused);
}

// At infinities the results are the limits; NaN stays NaN; zeros keep their signs.
template <class T>
void check_ends(const Case& of) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
    const Activation activation = of.activation;
    T z[kLanes];
    for (int k = 0; k < kLanes; ++k) z[k] = static_cast<T>(k);
    z[0] = kInfinity, z[1] = -kInfinity, z[2] = kNaN, z[3] = -kNaN, z[4] = -0.0;
    const bool is_sigmoid = activation == Activation::sigmoid;
    const bool is_bounded = is_sigmoid || activation == Activation::tanh;
    for (const auto& results : {of_values(activation, z), of_pack(activation, z)}) {
        const T* const y = results.value;
        const T* const slope = results.derivative;
        REQUIRE(y[0] == (is_bounded ? T{1} : kInfinity));
        REQUIRE(y[1] == (activation == Activation::tanh ? T{-1} : T{0}));
        REQUIRE(std::signbit(y[1]) == !is_sigmoid);
        REQUIRE(slope[0] == (is_bounded ? T{0} : T{1}) && slope[1] == 0);
        for (const int k : {0, 1}) {
            REQUIRE(std::abs(results.curvature[k]) < std::numeric_limits<T>::min());
        }
        for (const int k : {2, 3}) REQUIRE(std::isnan(y[k]) && std::isnan(slope[k]));
        REQUIRE(is_sigmoid ? y[4] == T(0.5) : are_same(y[4], z[4]));
    }
}

// Packs of every `step`-th float there is, against packs of double.
void check_floats(const Case& of, std::uint64_t step) {
    using packs::load, packs::store;
    const Activation activation = of.activation;
    Worst<float> values, derivatives;
    const Real least = of.largest_derivative * std::numeric_limits<float>::epsilon() / 2;
    for (std::uint64_t word = 0; word < std::uint64_t{1} << 32; word += kLanes * step) {
        float z[kLanes], y[kLanes], slope[kLanes];
        double exact_z[kLanes], exact_y[kLanes], exact_slope[kLanes];
        for (std::size_t i = 0; i < kLanes; ++i) {
            z[i] = bits_as<float>(static_cast<std::uint32_t>(word + i * step));
            if (!std::isfinite(z[i])) z[i] = 0;
            exact_z[i] = static_cast<double>(z[i]);
        }
        const packs::Pack<float> pack = load(z);
        const packs::Pack<double> exact = load(exact_z);
        store(y, smooth(activation, pack));
        store(slope, smooth_derivative(activation, pack));
        store(exact_y, smooth(activation, exact));
        store(exact_slope, smooth_derivative(activation, exact));
        for (std::size_t i = 0; i < kLanes; ++i) {
            const Real of_y = exact_y[i], of_slope = exact_slope[i];
            values.take(z[i], std::abs(y[i] - of_y) / unit_of<float>(of_y));
            derivatives.take(z[i], std::abs(slope[i] - of_slope) /
                                       std::max(unit_of<float>(of_slope), least / kUnits));
        }
    }
    std::printf("floats   %-10s value %5.2Lf at %-12.6g derivative %5.2Lf at %.6g\n",
                name_of(activation), values.units, static_cast<double>(values.z), derivatives.units,
                static_cast<double>(derivatives.z));
    std::fflush(stdout);
    const Real units = kFused ? kUnits : kUnitsUnfused;
    REQUIRE(values.units <= units && derivatives.units <= units);
}

template <class T>
void check_all(std::mt19937_64& random) {
    const std::vector<T> z = places<T>(random);
    for (const Case& of : kCases) {
        check_ends<T>(of);
        check(of, z);
    }
}

}  // namespace

// activations [--all]: also of all floats, which takes a quarter of an hour
int main(int count, char** arguments) {
    if (!machine_has_the_instructions()) {
        std::puts("this machine lacks the instruction set of this program");
        return 0;
    }
    std::mt19937_64 random(11);
    check_all<float>(random);
    check_all<double>(random);
    const bool all = count > 1 && std::string_view(arguments[1]) == "--all";
    for (const Case& of : kCases) check_floats(of, all ? 1 : 1009);
    std::printf("activations are right; packs of %d bytes a register\n", packs::kNativeBytes);
}

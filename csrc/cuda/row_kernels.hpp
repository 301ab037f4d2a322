// What the kernels of rows (row_forward.hpp, row_backward.hpp) share: which threads have a row,
// where its values are, how its sums become one.
//
//   team   the threads of a row: some lanes of a warp where rows are short, else the block
//   unit   V values side by side; thread k of a team has the units k, k + threads of the team ...
//   kept   units that a thread copied to shared memory when a row began; the others are read again.
//          No other thread touches them, so that nothing has to be waited for.
//
// Order of sums: a thread's values as they come, up to 8 at a time in the arithmetic's type, then
// in double; lanes of a warp by one tree; warps by their numbers.
#pragma once

#include "cuda/forward.hpp"
#include "cuda/row_shape.hpp"

namespace bnext::cuda {

template <class T_, int V_, bool activated>
struct RowKind {
    using T = T_;
    using C = Compute<T>;
    using P = Param<T>;
    using U = Unit<T, V_>;
    static constexpr int V = V_;
    static constexpr bool kActivated = activated;
    static constexpr int kBatch = row_batch(V, activated);  // units
    static constexpr int kValues = kBatch * V;
};

template <class K>
BNEXT_DEVICE typename K::C wide_value(const typename K::U& unit, int v) {
    return device::widened_of<K::V>(unit.value, v);
}

// What turns a row's values into xhat: (x - center) * scale + shift.
template <class S>
struct RowNumbers {
    S center, scale, shift;

    RowNumbers() = default;
    BNEXT_DEVICE RowNumbers(const HighLow& mean, double rstd)
        : center(static_cast<S>(mean.high)), scale(static_cast<S>(rstd)) {
        const double low = (mean.high - static_cast<double>(center)) + mean.low;
        shift = static_cast<S>(-low * rstd);
    }
    BNEXT_DEVICE S xhat(S x) const { return device::fma_of(x - center, scale, shift); }
};

// Whether a row's numbers are beyond what float32 has, so that xhat and dx are made in double.
template <class C>
BNEXT_DEVICE bool is_extreme_row(double mean, double rstd) {
    if constexpr (sizeof(C) == 8) return false;
    constexpr double kLargest = 0x1p100, kSmallest = 0x1p-100;
    const bool usual = rstd <= kLargest && (rstd >= kSmallest || rstd == 0.0) && mean < kLargest &&
                       mean > -kLargest;
    return !usual;
}

BNEXT_DEVICE double* row_statistic(const Arguments& a, int which, Index row) {
    return a.statistics + which * a.row.rows + row;
}

struct RowTeam {
    int lanes;  // threads
    int lane;   // this one's number
    int team;   // of the block
    int teams;

    BNEXT_DEVICE explicit RowTeam(const Arguments& a)
        : lanes(a.row.lanes),
          lane(device::thread() % lanes),
          team(device::thread() / lanes),
          teams(device::threads() / lanes) {}
    // Units that this thread has of a row.
    [[nodiscard]] BNEXT_DEVICE int units_of(const Arguments& a) const {
        return lane < a.row.units ? static_cast<int>((a.row.units - 1 - lane) / lanes) + 1 : 0;
    }
};

// What a block's threads share: the units that are kept, sums of warps, what a team agreed on, and
// sums for each column.
template <class K>
struct RowPlaces {
    typename K::U* units;  // this thread's first one, of the first array
    double* of_warps;
    unsigned char* agreed;
    typename K::C* columns;

    BNEXT_DEVICE RowPlaces(const Arguments& a, int arrays) {
        unsigned char* const shared = device::shared_memory();
        const int threads = device::threads();
        units = reinterpret_cast<typename K::U*>(shared) + device::thread();
        unsigned char* const behind =
            shared + Index{arrays} * a.row.kept * threads * static_cast<int>(sizeof(typename K::U));
        of_warps = reinterpret_cast<double*>(behind);
        agreed = behind + threads / kWarp * kBytesOfWarp;
        columns = reinterpret_cast<typename K::C*>(agreed + kBytesAgreed);
    }
    // Of array number k.
    BNEXT_DEVICE typename K::U* units_of(const Arguments& a, int k) const {
        return units + k * a.row.kept * device::threads();
    }
};

// One array's row, as the units of one thread.
template <class K>
class RowUnits {
    using U = typename K::U;

public:
    BNEXT_DEVICE RowUnits(const Arguments& a, const Operand& of, Index row, const RowTeam& team,
                          U* kept)
        : at_(static_cast<U*>(static_cast<void*>(static_cast<char*>(of.data) + row * of.outer)) +
              team.lane),
          lanes_(team.lanes),
          kept_(kept),
          count_(kept != nullptr ? a.row.kept : 0) {}

    // Asks for the units that are kept, of `count`.
    BNEXT_DEVICE void fetch(int count) const {
        const int some = count < count_ ? count : count_;
        BNEXT_UNROLL_BY(4)
        for (int k = 0; k < some; ++k) {
            if constexpr (device::kCopiesAsync<U>) {
                device::copy_async(slot(k), place(k));
            } else {
                *slot(k) = device::load(place(k));
            }
        }
    }
    BNEXT_DEVICE U operator[](int k) const {
        return k < count_ ? *slot(k) : device::load(place(k));
    }
    [[nodiscard]] BNEXT_DEVICE U* place(int k) const { return at_ + Index{k} * lanes_; }

private:
    [[nodiscard]] BNEXT_DEVICE U* slot(int k) const { return kept_ + k * device::threads(); }

    U* at_;
    int lanes_;
    U* kept_;
    int count_;
};

template <class K>
BNEXT_DEVICE void wait_for_units() {
    if constexpr (device::kCopiesAsync<typename K::U>) {
        device::commit_copies();
        device::wait_for_copies<0>();
    }
}

// A parameter's values in a unit's columns, or what stands for it where there is none.
template <class K>
BNEXT_DEVICE void parameters_at(const void* values, Index unit, typename K::P otherwise,
                                typename K::P (&out)[K::V]) {
    using P = typename K::P;
    constexpr int kWord =
        K::V * static_cast<int>(sizeof(P)) > 16 ? 16 / static_cast<int>(sizeof(P)) : K::V;
    if (values == nullptr) {
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) out[v] = otherwise;
        return;
    }
    const auto* const from = static_cast<const Unit<P, kWord>*>(values) + unit * (K::V / kWord);
    BNEXT_UNROLL
    for (int w = 0; w < K::V / kWord; ++w) {
        const Unit<P, kWord> word = device::load(from + w);
        BNEXT_UNROLL
        for (int v = 0; v < kWord; ++v) out[w * kWord + v] = word.value[v];
    }
}

// z = xhat * weight + bias + residual, as both passes have it.
template <class K>
BNEXT_DEVICE void arguments_at(const Arguments& a, const void* weight, const void* bias, Index unit,
                               const typename K::U* residual, const typename K::C (&xhat)[K::V],
                               typename K::C (&z)[K::V]) {
    using C = typename K::C;
    typename K::P scale[K::V], shift[K::V];
    parameters_at<K>(weight, unit, 1, scale);
    parameters_at<K>(bias, unit, 0, shift);
    typename K::U added{};
    if constexpr (K::kActivated) {
        if (a.fused.residual) added = device::load(residual);
    }
    BNEXT_UNROLL
    for (int v = 0; v < K::V; ++v) {
        z[v] = device::fma_of(xhat[v], static_cast<C>(scale[v]), static_cast<C>(shift[v]));
        if (K::kActivated && a.fused.residual) z[v] += wide_value<K>(added, v);
    }
}

// Whether the flag of any team of this warp is set. All threads of a team have the same.
BNEXT_DEVICE bool any_team(const RowTeam& team, bool flag) {
    int any = flag ? 1 : 0;
    for (int lanes = kWarp / 2; lanes >= team.lanes; lanes /= 2) {
        any |= device::shuffle_xor(any, lanes);
    }
    return any != 0;
}

// What `finish` makes of a team's two sums, in all of its threads. It gets the sums, and whether it
// is to write. All threads of a warp call it, also the threads of teams without a row.
template <class R, class K, class F>
BNEXT_DEVICE R agreed_of(const RowTeam& team, const RowPlaces<K>& places, double first,
                         double second, F&& finish) {
    static_assert(sizeof(R) <= kBytesAgreed);
    for (int lanes = (team.lanes < kWarp ? team.lanes : kWarp) / 2; lanes > 0; lanes /= 2) {
        first += device::shuffle_xor(first, lanes);
        second += device::shuffle_xor(second, lanes);
    }
    if (team.lanes <= kWarp) return finish(first, second, team.lane == 0);
    const int warp = device::thread() / kWarp, lane = device::thread() % kWarp;
    if (lane == 0) {
        places.of_warps[2 * warp] = first;
        places.of_warps[2 * warp + 1] = second;
    }
    device::block_barrier();
    R* const shared = reinterpret_cast<R*>(places.agreed);
    if (warp == 0) {  // one warp, since arithmetic in double is slow on some devices
        first = places.of_warps[0];
        second = places.of_warps[1];
        for (int w = 1; w < device::threads() / kWarp; ++w) {
            first += places.of_warps[2 * w];
            second += places.of_warps[2 * w + 1];
        }
        const R result = finish(first, second, lane == 0);
        if (lane == 0) *shared = result;
    }
    device::block_barrier();
    return *shared;
}

// Whether the sums of a batch neither overflow in float32 nor, being of squares, vanish there.
template <class C>
BNEXT_DEVICE bool are_ordinary(C first, C second) {
    constexpr C kMost = C{1e37F};
    if (sizeof(C) == 8) return true;
    return first < kMost && first > -kMost && second < kMost && second > -kMost;
}

}  // namespace bnext::cuda

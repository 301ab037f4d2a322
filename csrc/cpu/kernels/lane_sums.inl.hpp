// Sums over the lanes of several channels, or rows, at once: where these are short, adding up the
// 16 lanes of each takes longer than its values do. The tree is sum_lanes' own, so the bits are the
// same.

inline constexpr int kSummedTogether = Wide::kPartLanes;  // channels: as many as sums fill a part

// Halves are added until one part is left.
template <int N>
BNEXT_FORCE_INLINE Doubles add_parts(const Doubles (&part)[N]) {
    if constexpr (N == 1) {
        return part[0];
    } else {
        Doubles half[N / 2];
        unrolled<N / 2>([&](auto i) BNEXT_INLINE_LAMBDA { half[i] = part[i] + part[i + N / 2]; });
        return add_parts(half);
    }
}

// Of two parts with runs of L lanes, the first halves of all runs plus their second halves.
template <int L, int... kLane>
BNEXT_FORCE_INLINE Doubles add_halves(const Doubles& a, const Doubles& b,
                                      std::integer_sequence<int, kLane...>) {
    // The lane of (a, b) that lane k of the sum begins with.
    constexpr auto from = [](int k) { return k / (L / 2) * L + k % (L / 2); };
    return __builtin_shufflevector(a, b, from(kLane)...) +
           __builtin_shufflevector(a, b, (from(kLane) + L / 2)...);
}

// The lane sums of N parts, in their order.
template <int L, int N>
BNEXT_FORCE_INLINE Doubles add_lanes(const Doubles (&part)[N]) {
    constexpr std::make_integer_sequence<int, kSummedTogether> lanes;
    Doubles half[N / 2];
    unrolled<N / 2>([&](auto i) BNEXT_INLINE_LAMBDA {
        half[i] = add_halves<L>(part[2 * i], part[2 * i + 1], lanes);
    });
    if constexpr (N == 2) {
        return half[0];
    } else {
        return add_lanes<L / 2>(half);
    }
}

// Calls sums_of(k, first, second) for each of the channels, which gives two sums as what add_parts
// leaves, and stores the sums of their lanes.
template <class SumsOf>
BNEXT_FORCE_INLINE void sum_lanes_of_all(Index channels, double* first, double* second,
                                         SumsOf&& sums_of) {
    constexpr Index kMost = kSummedTogether;
    Doubles a[kSummedTogether], b[kSummedTogether];
    for (Index begin = 0; begin < channels; begin += kMost) {
        const Index count = channels - begin < kMost ? channels - begin : kMost;
        for (Index k = 0; k < count; ++k) sums_of(begin + k, a[k], b[k]);
        for (Index k = count; k < kMost; ++k) a[k] = b[k] = Doubles{};
        const Doubles sum_a = add_lanes<kSummedTogether>(a), sum_b = add_lanes<kSummedTogether>(b);
        for (Index k = 0; k < count; ++k) {
            first[begin + k] = sum_a[k];
            second[begin + k] = sum_b[k];
        }
    }
}

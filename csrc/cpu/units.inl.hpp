// A unit: as many values as kernels go through a run by, two packs of 16-bit data (a cache line)
// and one of others (a line of float32).
//
// bfloat16 is the upper half of a float32, so a word of two values comes apart by a shift and a
// mask, and together again as cheaply. The packs of a bfloat16 unit are therefore its values at
// even places and those at odd ones.

template <class T>
inline constexpr int kUnitPacks = kIs16Bit<T> ? 2 : 1;
template <class T>
inline constexpr int kUnit = kUnitPacks<T> * kLanes;

// Pack h of the unit at p. (By itself: a structure of both packs GCC writes to memory.)
template <int h, class T>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_of_unit(const T* p) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        return pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA {
            WordsPart both;
            __builtin_memcpy(&both, p + i * 2 * Words::kPartLanes, sizeof both);
            return (Floats)(h == 0 ? both << 16 : both & 0xffff0000U);
        });
    } else {
        return load(p + h * kLanes);
    }
}

// Both packs of a bfloat16 unit, rounded, as they are in memory: but for their type, floats.
BNEXT_LONG Pack<float> joined(const Pack<float>& a, const Pack<float>& b) {
    const Words even = rounded_words(a), odd = rounded_words(b);
    return pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Floats)((even.part[i] >> 16) | (odd.part[i] & 0xffff0000U));
    });
}

// Writes a unit, whose packs are pack(Number<h>). Non-temporal where `kStreams`; then p is 64-byte
// aligned.
template <bool kStreams, class T, class F>
BNEXT_FORCE_INLINE void write_unit(T* p, F&& pack) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        auto* const line = reinterpret_cast<float*>(p);
        const Pack<float> both = joined(pack(Number<0>{}), pack(Number<1>{}));
        kStreams ? stream(line, both) : store(line, both);
    } else if constexpr (kStreams && kIs16Bit<T>) {
        stream_pair(p, pack(Number<0>{}), pack(Number<1>{}));
    } else {
        unrolled<kUnitPacks<T>>([&](auto h) BNEXT_INLINE_LAMBDA {
            kStreams ? stream(p + h * kLanes, pack(h)) : store(p + h * kLanes, pack(h));
        });
    }
}

// How many lanes of pack h belong to the unit's first n values.
template <class T>
BNEXT_FORCE_INLINE int lanes_of_first(int n, int h) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16) return (n + 1 - h) / 2;
    const int left = n - h * kLanes;
    return left < 0 ? 0 : (left < kLanes ? left : kLanes);
}

template <class C>
inline constexpr C kPlaces[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The first n lanes of a, the others of b.
template <class C>
BNEXT_LONG Pack<C> blend(int n, const Pack<C>& a, const Pack<C>& b) {
#if defined(__AVX512F__)
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return blend_masked(mask_of<C>(n, i), a.part[i], b.part[i]);
    });
#else
    const Pack<C> places = load(kPlaces<C>), end = broadcast(static_cast<C>(n));
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return places.part[i] < end.part[i] ? a.part[i] : b.part[i];
    });
#endif
}

// Where registers are wide enough, columns are gone through by units too.
inline constexpr bool kColumnsByUnits = kNativeBytes == 64;

// Of what belongs to the columns of a unit of T, one value for each from p on: pack h, in the
// unit's order.
template <class T, int h, class C>
BNEXT_FORCE_INLINE Pack<C> columns_of_unit(const C* p) {
#if defined(__AVX512F__)
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        const __m512i even =
            _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __m512i places = _mm512_add_epi32(even, _mm512_set1_epi32(h));
        const Floats low = load(p).part[0], high = load(p + kLanes).part[0];
        return {_mm512_permutex2var_ps(low, places, high)};
    }
#endif
    return load(p + h * kLanes);
}

// The other way: packs of units, brought into the order of their columns.
template <class T, int G, class C>
BNEXT_FORCE_INLINE void into_column_order(Pack<C> (&packs)[G]) {
#if defined(__AVX512F__)
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        const __m512i low =
            _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        unrolled<G / 2>([&](auto u) BNEXT_INLINE_LAMBDA {
            const Floats even = packs[2 * u].part[0], odd = packs[2 * u + 1].part[0];
            packs[2 * u].part[0] = _mm512_permutex2var_ps(even, low, odd);
            packs[2 * u + 1].part[0] = _mm512_permutex2var_ps(even, high, odd);
        });
    }
#else
    (void)packs;
#endif
}

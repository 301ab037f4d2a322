// Activated formulas (core/formulas.hpp), and their flags: a byte for every value, 1 or 0; in
// registers packs of the compute type. Such formulas go by packs of values in a row, and by no units
// whose packs are others (cpu/units.inl.hpp).

BNEXT_FORCE_INLINE Words flag_words(const Pack<float>& flags) {  // 1.0 is 0x3f800000
    return map_words(words_of(flags), [](auto word) BNEXT_INLINE_LAMBDA { return word >> 29; });
}
BNEXT_FORCE_INLINE Words flag_words(const Wide& flags) {
    return flag_words(round_to<float>(flags));
}

template <class C>
BNEXT_FORCE_INLINE Pack<C> flags_of_words(const Words& words) {
    const Pack<float> flags = pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA {
        return __builtin_convertvector((Native<std::int32_t>)words.part[i], Floats);
    });
    if constexpr (sizeof(C) == 4) {
        return flags;
    } else {
        return widen(flags);
    }
}

// The first `columns` of a pack's flags (0: all).
template <class C>
BNEXT_FORCE_INLINE void store_flags(std::uint8_t* p, int columns, const Pack<C>& flags) {
    const Words words = flag_words(flags);
#if defined(__AVX512F__)
    const __mmask16 mask = columns == 0 ? __mmask16{0xffff} : mask_of<float>(columns, 0);
    _mm512_mask_cvtepi32_storeu_epi8(p, mask, (__m512i)words.part[0]);
#else
    std::uint16_t shorts[kLanes];
    narrow_to_shorts(words, shorts);
    const int n = columns == 0 ? kLanes : columns;
    for (int i = 0; i < n; ++i) p[i] = static_cast<std::uint8_t>(shorts[i]);
#endif
}

// Flags of ReLU: 1 unless z <= 0.
BNEXT_FORCE_INLINE void store_signs(std::uint8_t* p, int columns, const Pack<float>& z) {
    const Pack<float> zero = broadcast(0.0F);
    store_flags(p, columns, unless_at_most(z, zero, broadcast(1.0F), zero));
}

template <class C>
BNEXT_FORCE_INLINE Pack<C> load_flags(const std::uint8_t* p, int columns) {
#if defined(__AVX512F__)
    const __mmask16 mask = columns == 0 ? __mmask16{0xffff} : mask_of<float>(columns, 0);
    return flags_of_words<C>({(WordsPart)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p))});
#else
    const int n = columns == 0 ? kLanes : columns;
    std::uint16_t shorts[kLanes] = {};
    for (int i = 0; i < n; ++i) shorts[i] = p[i];
    return flags_of_words<C>(widen_shorts(shorts));
#endif
}

// Calls the formula on packs that were loaded. Activated ones are called out of line, with the flags
// of the pack (null: none), of which the first `columns` values exist (0: all).
template <class Formula, class P>
BNEXT_NO_INLINE void call_activated(const Formula& formula, const P (&in)[Formula::kReads],
                                    P (&out)[Formula::kWrites], std::uint8_t* flags, int columns) {
    if (flags == nullptr) {
        formula(in, out);
    } else if constexpr (Formula::kFlags == Flags::read) {
        formula(in, out, load_flags<LaneOf<P>>(flags, columns));
    } else {
        P flag = in[0];
        formula(in, out, flag);
        store_flags(flags, columns, flag);
    }
}
template <class Formula>
inline constexpr bool kIsActivated = Formula::kFlags != Flags::none;

// Which formulas have ReLU inline: of float32, the most common ones.
template <class Formula, class T>
inline constexpr bool kInlinesRelu = kIsActivated<Formula> && sizeof(T) == 4;

// Loads the packs of the inputs by load(i), and calls the formula.
template <class T, class Formula, class P, class Load>
BNEXT_FORCE_INLINE void call_formula(const Formula& formula, P (&out)[Formula::kWrites],
                                     std::uint8_t* flags, int columns, Load&& load) {
    P in[Formula::kReads];
    constexpr int kLast = Formula::kReads - 1;  // of activated ones, the residual
    unrolled<kLast>([&](auto i) BNEXT_INLINE_LAMBDA { in[i] = load(i); });
    if constexpr (kInlinesRelu<Formula, T>) {
        const bool is_relu = formula.fused.activation == Activation::relu;
        if constexpr (Formula::kFlags == Flags::written) {
            if (is_relu) {
                in[kLast] = formula.fused.residual ? load(Number<kLast>{}) : in[0];
                const P z = formula.relu(in, out);
                if (flags != nullptr) store_signs(flags, columns, z);
                return;
            }
        } else if (is_relu && flags != nullptr) {
            return formula.relu(in, out, load_flags<LaneOf<P>>(flags, columns));
        } else if (is_relu && !formula.fused.residual) {
            return formula.relu(in, out);
        }
    }
    in[kLast] = load(Number<kLast>{});
    if constexpr (kIsActivated<Formula>) {
        call_activated(formula, in, out, flags, columns);
    } else {
        formula(in, out);
    }
}

// Whether the formula's output w is wanted: of activated ones, the residual's gradient may not be.
template <class Formula>
BNEXT_FORCE_INLINE bool writes_output(const Formula& formula, int w) {
    if constexpr (Formula::kFlags == Flags::read) return w == 0 || formula.fused.residual;
    return true;
}

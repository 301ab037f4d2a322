// Flags of units (units.inl.hpp), and places of flags in memory.

#if defined(__AVX512F__)  // elsewhere no formula has flags (write_quickly.inl.hpp)
// A bit for every lane: whether not a <= 0, as `passes` has it of ReLU.
BNEXT_FORCE_INLINE unsigned bits_above_zero(const Pack<float>& a) {
    return _mm512_cmp_ps_mask(a.part[0], Floats{}, _CMP_NLE_UQ);
}

// The same of the values of a bfloat16 unit (units.inl.hpp), in their order in memory.
BNEXT_FORCE_INLINE std::uint32_t bits_of_unit(const Pack<float> (&of)[2]) {
    const auto even = static_cast<__mmask16>(bits_above_zero(of[0]));
    const auto odd = static_cast<__mmask16>(bits_above_zero(of[1]));
    const __m512i low = _mm512_maskz_set1_epi32(even, 0xffff);
    return _mm512_movepi16_mask(
        _mm512_mask_or_epi32(low, odd, low, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
}
#endif

// The place of a value's flag, behind which the next values' flags are: a bit of the words. Of
// rows, the place of the first one's flags, and the pitch from row to row.
class FlagPlace {
public:
    FlagPlace() = default;
    BNEXT_FORCE_INLINE FlagPlace(const Activated* of, Index o, Index c, Index i,
                                 bool outer_only = false)
        : words_(of->flags.words),
          bit_(of->flags.at(o, c, i)),
          pitch_(outer_only ? of->flags.stride.outer : of->flags.stride.inner) {}
    [[nodiscard]] BNEXT_FORCE_INLINE FlagPlace at(Index j) const {
        FlagPlace place = *this;
        place.bit_ += j;
        return place;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE FlagPlace row(Index r) const { return at(r * pitch_); }

    // The same, of a run of n values whose flags are put in their order: words that are wholly of
    // the run are nobody else's meanwhile.
    [[nodiscard]] BNEXT_FORCE_INLINE FlagPlace of_run(Index n) const {
        FlagPlace place = *this;
        place.own_begin_ = (bit_ + 15) / 16 * 16;
        place.own_end_ = (bit_ + n) / 16 * 16;
        return place;
    }

    // Of a unit.
    BNEXT_FORCE_INLINE void put_unit(std::uint32_t bits) const {
        std::uint16_t* const word = words_ + (bit_ >> 4);
        const int past = static_cast<int>(bit_ & 15);
        if (past == 0) {
            __builtin_memcpy(word, &bits, sizeof bits);
        } else if (bit_ - past >= own_begin_ && bit_ - past + 48 <= own_end_) {
            // What the last of three words has behind the unit is put next.
            std::uint32_t first;
            __builtin_memcpy(&first, word, sizeof first);
            first = (first & ((1U << past) - 1U)) | bits << past;
            __builtin_memcpy(word, &first, sizeof first);
            word[2] = static_cast<std::uint16_t>(bits >> (32 - past));
        } else {
            put_halves(bits);
        }
    }
    // Of n values, at most 16, from anywhere on.
    BNEXT_FORCE_INLINE void put(unsigned bits, int n) const {
        const int past = static_cast<int>(bit_ & 15);
        const unsigned mask = ((1U << n) - 1U) << past;
        std::uint16_t* const word = words_ + (bit_ >> 4);
        bits <<= past;
        if (mask == 0xffffU) {
            *word = static_cast<std::uint16_t>(bits);
            return;
        }
        set_bits(word, mask & 0xffffU, bits & 0xffffU);
        if (mask > 0xffffU) set_bits(word + 1, mask >> 16, bits >> 16);
    }
    [[nodiscard]] BNEXT_FORCE_INLINE std::uint32_t unit() const {
        std::uint64_t bits;
        __builtin_memcpy(&bits, reinterpret_cast<const char*>(words_) + (bit_ >> 3), sizeof bits);
        return static_cast<std::uint32_t>(bits >> (bit_ & 7));
    }
    [[nodiscard]] BNEXT_FORCE_INLINE unsigned pack() const {
        return flags_from(FlagBits{words_, {}}, bit_);
    }

private:
    BNEXT_NO_INLINE void put_halves(std::uint32_t bits) const {
        put(bits & 0xffffU, 16);
        at(16).put(bits >> 16, 16);
    }

    std::uint16_t* words_ = nullptr;
    Index bit_ = 0, pitch_ = 0;
    Index own_begin_ = 0, own_end_ = 0;
};

// Of formulas without flags.
struct NoFlagPlace {
    NoFlagPlace() = default;
    BNEXT_FORCE_INLINE NoFlagPlace(const Activated*, Index, Index, Index, bool = false) {}
    [[nodiscard]] BNEXT_FORCE_INLINE NoFlagPlace at(Index) const { return {}; }
    [[nodiscard]] BNEXT_FORCE_INLINE NoFlagPlace row(Index) const { return {}; }
    [[nodiscard]] BNEXT_FORCE_INLINE NoFlagPlace of_run(Index) const { return {}; }
};
template <class Formula>
using FlagPlaceOf = std::conditional_t<Formula::kFlags == Flags::none, NoFlagPlace, FlagPlace>;

#if defined(__AVX512F__)
// Pack h of a bfloat16 unit, 0 where flags are not set.
template <int h>
BNEXT_FORCE_INLINE Pack<float> load_of_unit_where(const bfloat16* p, const FlagPlace& flags) {
    WordsPart both;
    __builtin_memcpy(&both, p, sizeof both);
    both &= (WordsPart)_mm512_movm_epi16(flags.unit());
    return {(Floats)(h == 0 ? both << 16 : both & 0xffff0000U)};
}
#endif

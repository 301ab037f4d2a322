// The flags of an activated call (core/activation.hpp): one bit for every value, in words of 16.
// Kernels write runs of values, which begin and end anywhere, so two threads may write bits of one
// word: a word that is not wholly a run's is changed by atomic operations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.hpp"
#include "core/problem.hpp"

namespace bnext::cpu {

// Strides are of an array without gaps, in values, and so in bits.
struct FlagBits {
    std::uint16_t* words = nullptr;
    Strides stride{};

    [[nodiscard]] bool are_kept() const { return words != nullptr; }
    [[nodiscard]] BNEXT_FORCE_INLINE Index at(Index o, Index c, Index i) const {
        return o * stride.outer + c * stride.channel + i * stride.inner;
    }
};

// How many words the flags of so many values take. Readers load up to 32 bits at once.
constexpr std::size_t flag_words(std::size_t values) { return (values + 15) / 16 + 2; }

// Gives the bits of `mask` in a word the values that they have in `bits`.
BNEXT_FORCE_INLINE void set_bits(std::uint16_t* word, unsigned mask, unsigned bits) {
    __atomic_fetch_and(word, static_cast<std::uint16_t>(~mask), __ATOMIC_RELAXED);
    __atomic_fetch_or(word, static_cast<std::uint16_t>(bits & mask), __ATOMIC_RELAXED);
}

BNEXT_FORCE_INLINE void set_flag(const FlagBits& flags, Index bit, bool value) {
    const unsigned mask = 1U << (bit & 15);
    set_bits(flags.words + (bit >> 4), mask, value ? mask : 0U);
}
BNEXT_FORCE_INLINE bool flag_at(const FlagBits& flags, Index bit) {
    return ((flags.words[bit >> 4] >> (bit & 15)) & 1) != 0;
}

// Writes the flags of runs, in the order of values. Runs that follow each other share no atomic
// operations.
class FlagWriter {
public:
    BNEXT_FORCE_INLINE explicit FlagWriter(const FlagBits& flags) : words_(flags.words) {}

    [[nodiscard]] BNEXT_FORCE_INLINE bool are_kept() const { return words_ != nullptr; }
    // The flags that come begin with that bit.
    BNEXT_FORCE_INLINE void begin_at(Index bit) {
        if (bit == next_ || !are_kept()) return;
        finish();
        word_ = words_ + (bit >> 4);
        others_ = filled_ = static_cast<int>(bit & 15);
        next_ = bit;
    }

    // The next n, at most 16, lowest first; the other bits are 0.
    BNEXT_FORCE_INLINE void put(unsigned bits, int n) {
        pending_ |= bits << filled_;
        filled_ += n;
        next_ += n;
        if (filled_ < 16) return;
        if (others_ == 0) {
            *word_ = static_cast<std::uint16_t>(pending_);
        } else {
            set_bits(word_, 0xffffU << others_, pending_);
            others_ = 0;
        }
        ++word_;
        pending_ >>= 16;
        filled_ -= 16;
    }
    // The next 16: where no others share the first word, each of them completes one.
    BNEXT_FORCE_INLINE void put_pack(unsigned bits) {
        if (others_ != 0) return put(bits, 16);
        pending_ |= bits << filled_;
        *word_++ = static_cast<std::uint16_t>(pending_);
        pending_ >>= 16;
        next_ += 16;
    }
    // What is left of the last word. Nothing more is put behind it.
    BNEXT_FORCE_INLINE void finish() {
        if (filled_ > others_) set_bits(word_, (1U << filled_) - (1U << others_), pending_);
        filled_ = others_ = 0;
        pending_ = 0;
        next_ = -1;
    }

private:
    std::uint16_t* words_;
    std::uint16_t* word_ = nullptr;
    Index next_ = -1;
    int others_ = 0;  // bits of the first word that belong to others
    int filled_ = 0;
    unsigned pending_ = 0;
};

// The flags of 16 values from `bit` on, in the lowest bits.
BNEXT_FORCE_INLINE unsigned flags_from(const FlagBits& flags, Index bit) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, reinterpret_cast<const char*>(flags.words) + (bit >> 3), sizeof bits);
    return (bits >> (bit & 7)) & 0xffffU;
}

}  // namespace bnext::cpu

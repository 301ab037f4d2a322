// The floating-point mode that kernels compute in, whatever mode a thread is in.
//
// A library linked with -ffast-math sets "flush to zero" in the thread that loads it and in no
// other; feenableexcept and fesetround are set by thread as well. Results would then depend on the
// thread that computed them. While a FloatMode lives, its thread rounds to nearest, keeps subnormal
// numbers and raises no signal; afterwards the thread has its mode, and its exception flags, back.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bnext {

class FloatMode {
public:
    FloatMode() : before_(get()) {
        if ((before_ & kControl) != kUsual) set(kUsual);
    }
    ~FloatMode() {
        if ((before_ & kControl) != kUsual) set(before_);
    }
    FloatMode(const FloatMode&) = delete;
    FloatMode& operator=(const FloatMode&) = delete;

private:
#if defined(__x86_64__)
    using Word = std::uint32_t;
    static constexpr Word kFlags = 0x3f;  // the exceptions that have happened
    static constexpr Word kControl = ~kFlags;
    static constexpr Word kUsual = 0x1f80;  // every exception masked
    static Word get() { return _mm_getcsr(); }
    static void set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
    using Word = std::uint64_t;
    static constexpr Word kControl = ~Word{0};
    static constexpr Word kUsual = 0;
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
    using Word = std::uint32_t;
    static constexpr Word kControl = 0;
    static constexpr Word kUsual = 0;
    static Word get() { return 0; }
    static void set(Word) {}
#endif

    Word before_;
};

}  // namespace bnext

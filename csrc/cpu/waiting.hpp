// Waiting for another thread: awake for some microseconds, then asleep.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/team_size.hpp"

namespace bnext::cpu {

// Falling asleep and waking takes 5 to 50 microseconds; polling pays for as long.
constexpr Nanoseconds kLook = 50'000;

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`, and returns the time waited.
inline Nanoseconds wait_while(std::atomic<std::uint32_t>& value, std::uint32_t old) {
    constexpr int kLooksPerTime = 32;
    if (value.load(std::memory_order_acquire) != old) return 0;
    const Nanoseconds begin = now();
    while (now() - begin < kLook) {
        for (int i = 0; i < kLooksPerTime; ++i) {
            if (value.load(std::memory_order_acquire) != old) return now() - begin;
            pause_briefly();
        }
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
    return now() - begin;
}

}  // namespace bnext::cpu

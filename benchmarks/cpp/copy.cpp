#include "copy.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "cpu/parallel.hpp"

namespace bnext::benchmarks {
namespace {

constexpr Index kLine = 64;

#ifdef __SSE2__
void stream_lines(char* to, const char* from, Index bytes) {
    for (Index i = 0; i < bytes; i += kLine) {
        const auto* source = reinterpret_cast<const __m128i*>(from + i);
        auto* target = reinterpret_cast<__m128i*>(to + i);
        for (int k = 0; k < 4; ++k) _mm_stream_si128(target + k, _mm_loadu_si128(source + k));
    }
    _mm_sfence();
}
#else
void stream_lines(char* to, const char* from, Index bytes) {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
#endif

// Calls copy(to, from, bytes) on each thread's share: whole lines of `to`, with the ends apart.
template <class Copy>
void share_out(void* to, const void* from, Index bytes, int threads, const Copy& copy) {
    auto* target = static_cast<char*>(to);
    const auto* source = static_cast<const char*>(from);
    const auto past_line = static_cast<Index>(reinterpret_cast<std::uintptr_t>(to) % kLine);
    const Index head = std::min(bytes, (kLine - past_line) % kLine);
    const Index lines = (bytes - head) / kLine;
    cpu::parallel(threads, bytes, [&](const cpu::Team& team) {
        const Index begin = head + team.share_begin(lines) * kLine;
        const Index end = head + team.share_end(lines) * kLine;
        copy(target + begin, source + begin, end - begin);
    });
    const Index rest = head + lines * kLine;
    std::memcpy(target, source, static_cast<std::size_t>(head));
    std::memcpy(target + rest, source + rest, static_cast<std::size_t>(bytes - rest));
}

}  // namespace

void copy_with_memcpy(void* to, const void* from, Index bytes, int threads) {
    share_out(to, from, bytes, threads, [](char* target, const char* source, Index n) {
        std::memcpy(target, source, static_cast<std::size_t>(n));
    });
}

void copy_streaming(void* to, const void* from, Index bytes, int threads) {
    share_out(to, from, bytes, threads, stream_lines);
}

double copy_bandwidth(void* to, const void* from, Index bytes, int threads) {
    using Clock = std::chrono::steady_clock;
    constexpr int kTimes = 5;
    double fastest = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kTimes; ++i) {
        for (const auto copy : {copy_with_memcpy, copy_streaming}) {
            const auto begin = Clock::now();
            copy(to, from, bytes, threads);
            const std::chrono::duration<double> took = Clock::now() - begin;
            fastest = std::min(fastest, took.count());
        }
    }
    return 2.0 * static_cast<double>(bytes) / fastest;
}

}  // namespace bnext::benchmarks

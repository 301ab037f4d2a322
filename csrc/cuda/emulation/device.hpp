// device.hpp for a CPU, for tests without a GPU: every thread of a launch is a fiber that runs
// until it waits for others. It is slow, and does not show the races of a device.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/annotations.hpp"

namespace bnext::cuda::device {

int thread();
int threads();
Index block();
unsigned char* shared_memory();
void block_barrier();
void cluster_barrier();
void cluster_arrive();
void cluster_wait();
unsigned char* shared_memory_of_rank(int rank);
unsigned arrive(unsigned* counter);
void arrive_and_forget(unsigned* counter);
void wait_for(const unsigned* counter, unsigned arrivals);
// Shows `size` bytes to the warp, and takes the bytes that `lane` shows.
void exchange(void* value, int size, int lane);
int lane();

template <class T>
T shuffle(T value, int from) {
    exchange(&value, sizeof value, from);
    return value;
}
template <class T>
T shuffle_xor(T value, int lanes) {
    exchange(&value, sizeof value, lane() ^ lanes);
    return value;
}
template <class T>
const T* of_cluster_rank(T* place, int rank) {
    const auto offset = reinterpret_cast<unsigned char*>(place) - shared_memory();
    return reinterpret_cast<const T*>(shared_memory_of_rank(rank) + offset);
}

// A device reads and writes words at multiples of their size alone; ends the launch of others.
void refuse_misaligned();
template <class V>
const V* aligned(const V* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % sizeof(V) != 0) refuse_misaligned();
    return p;
}

inline double load_fresh(const double* p) { return *aligned(p); }

template <class V>
V load(const V* p) {
    return *aligned(p);
}
template <class V>
void store_once(V* p, const V& value) {
    (void)aligned(p);
    *p = value;
}

// Reads the address, so that a sanitizer finds a prefetch outside the array.
inline void prefetch(const void* p) { (void)*static_cast<const volatile unsigned char*>(p); }

// Copies arrive as late as they may on a device.
template <class V>
inline constexpr bool kCopiesAsync = sizeof(V) >= 4;
void copy_later(void* shared, const void* p, int size);
void commit_copies();
void finish_copies(int pending);
template <class V>
void copy_async(V* shared, const V* p) {
    (void)aligned(shared);
    copy_later(shared, aligned(p), sizeof(V));
}
template <int kPending>
void wait_for_copies() {
    finish_copies(kPending);
}

template <int kCount, class T>
Compute<T> widened_of(const T* values, int v) {
    return static_cast<Compute<T>>(values[v]);
}
template <int kCount, class T>
void narrow(T* to, const Compute<T> (&values)[kCount]) {
    for (int v = 0; v < kCount; ++v) to[v] = static_cast<T>(values[v]);
}

inline float fma_of(float a, float b, float c) { return std::fma(a, b, c); }
inline double fma_of(double a, double b, double c) { return std::fma(a, b, c); }
inline double square_root(double a) { return std::sqrt(a); }

}  // namespace bnext::cuda::device

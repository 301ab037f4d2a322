// What kernels need of the device, in one place: who they are, how threads wait for each other and
// see each other's values, loads and stores with their hints. Kernels use nothing else of CUDA, so
// that the same source also runs on a CPU, thread by thread (emulation/device.hpp), where tests
// compare it with the reference on machines without a GPU.
#pragma once

#if defined(BNEXT_CUDA_EMULATION)
#include "cuda/emulation/device.hpp"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/annotations.hpp"
#include "cuda/tuning.hpp"

namespace bnext::cuda::device {

BNEXT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
BNEXT_DEVICE int threads() { return static_cast<int>(blockDim.x); }
BNEXT_DEVICE Index block() { return static_cast<Index>(blockIdx.x); }

BNEXT_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

BNEXT_DEVICE void block_barrier() { __syncthreads(); }

template <class T>
BNEXT_DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffU, value, lane);
}
template <class T>
BNEXT_DEVICE T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffU, value, lanes);
}

// Clusters of blocks: compute capability 9.0 and later. Elsewhere a block is alone, and no plan
// says otherwise. Every thread of the cluster calls each of these, warps together.
BNEXT_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
            : "memory");
#endif
}
// The barrier in two: arrival orders no memory accesses, and waits for no store.
BNEXT_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
BNEXT_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The same place of shared memory, in block `rank` of the cluster.
template <class T>
BNEXT_DEVICE const T* of_cluster_rank(T* place, int rank) {
#if __CUDA_ARCH__ >= 900
    return static_cast<const T*>(__cluster_map_shared_rank(place, static_cast<unsigned>(rank)));
#else
    return place;
#endif
}

// Counts an arrival at `counter`. What this thread wrote or saw before is visible to a thread that
// sees the arrival: to the next one that arrives, or after wait_for. Returns the arrivals before.
BNEXT_DEVICE unsigned arrive(unsigned* counter) {
    unsigned before = 0;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(counter)
                 : "memory");
    return before;
}
// The same where the number is of no interest, for wait_for alone; the thread does not wait for it.
BNEXT_DEVICE void arrive_and_forget(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// Polls without order, and one fence at the end. A wait past tuning::kMostWait ends the kernel with
// an error in place of a hang. The polls are counted too: they stand still under a debugger, while
// the clock goes on, and slow down with the other blocks under a sanitizer.
BNEXT_DEVICE void wait_for(const unsigned* counter, unsigned arrivals) {
    unsigned long long begin = 0;
    for (unsigned polls = 1;; ++polls) {
        unsigned seen = 0;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (seen >= arrivals) break;
        if (tuning::kMostWait > 0 && polls % tuning::kPollsPerLook == 0) {
            unsigned long long now = 0;  // nanoseconds
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
            if (begin == 0) begin = now;
            if (polls >= tuning::kFewestPolls && now - begin > tuning::kMostWait) __trap();
        }
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Written by other blocks of this launch: not from the first-level cache, which may be older.
BNEXT_DEVICE double load_fresh(const double* p) { return __ldcg(p); }

// --- data ----------------------------------------------------------------------------------------

// Values of up to 16 bytes, as one access.
template <class V>
using WordOf =
    std::conditional_t<sizeof(V) == 2, unsigned short,
                       std::conditional_t<sizeof(V) == 4, unsigned,
                                          std::conditional_t<sizeof(V) == 8, uint2, uint4> > >;

template <class V>
BNEXT_DEVICE V load(const V* p) {
    using Word = WordOf<V>;
    const Word word = __ldg(reinterpret_cast<const Word*>(p));
    return reinterpret_cast<const V&>(word);
}
// What this launch does not read again.
template <class V>
BNEXT_DEVICE void store_once(V* p, const V& value) {
    using Word = WordOf<V>;
    const Word word = reinterpret_cast<const Word&>(value);
    if constexpr (tuning::kStoreOnce) {
        __stcs(reinterpret_cast<Word*>(p), word);
    } else {
        __stwb(reinterpret_cast<Word*>(p), word);
    }
}

// To the second-level cache, at any time from now on.
BNEXT_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// A copy to shared memory that goes on while the thread does: 4, 8 or 16 bytes. It has arrived once
// the group it was committed with has; only the thread that asked may rely on that.
template <class V>
inline constexpr bool kCopiesAsync = sizeof(V) >= 4;

template <class V>
BNEXT_DEVICE void copy_async(V* shared, const V* p) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (sizeof(V) == 16) {  // .cg: not by way of the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(p) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(p),
                     "n"(static_cast<int>(sizeof(V)))
                     : "memory");
    }
}
BNEXT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All groups but the last kPending.
template <int kPending>
BNEXT_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

BNEXT_DEVICE float widened(float value) { return value; }
BNEXT_DEVICE double widened(double value) { return value; }
BNEXT_DEVICE float widened(float16 value) { return __half2float(__ushort_as_half(value.bits)); }
BNEXT_DEVICE float widened(bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

// Value v of kCount that lie in one word or more. (Of bfloat16, one instruction each.)
template <int kCount, class T>
BNEXT_DEVICE Compute<T> widened_of(const T* values, int v) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16 && kCount > 1) {
        const unsigned word = reinterpret_cast<const unsigned*>(values)[v / 2];
        return __uint_as_float(v % 2 != 0 ? word & 0xffff0000U : word << 16);
    } else {
        return widened(values[v]);
    }
}

// Rounded to nearest even.
template <class T>
BNEXT_DEVICE T narrowed(Compute<T> value) {
    if constexpr (DTypeOf<T>::value == DType::float16) {
        T result;
        result.bits = __half_as_ushort(__float2half_rn(value));
        return result;
    } else if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        T result;
        result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
        return result;
    } else {
        return value;
    }
}

// The same for kCount of them. (Of 16-bit types, one instruction for two.)
template <int kCount, class T>
BNEXT_DEVICE void narrow(T* to, const Compute<T> (&values)[kCount]) {
    if constexpr (sizeof(T) == 2 && kCount > 1) {
        BNEXT_UNROLL
        for (int v = 0; v < kCount; v += 2) {
            if constexpr (DTypeOf<T>::value == DType::float16) {
                const __half2 pair = __floats2half2_rn(values[v], values[v + 1]);
                *reinterpret_cast<__half2*>(to + v) = pair;
            } else {
                const __nv_bfloat162 pair = __floats2bfloat162_rn(values[v], values[v + 1]);
                *reinterpret_cast<__nv_bfloat162*>(to + v) = pair;
            }
        }
    } else {
        BNEXT_UNROLL
        for (int v = 0; v < kCount; ++v) to[v] = narrowed<T>(values[v]);
    }
}

BNEXT_DEVICE float fma_of(float a, float b, float c) { return __fmaf_rn(a, b, c); }
BNEXT_DEVICE double fma_of(double a, double b, double c) { return __fma_rn(a, b, c); }
BNEXT_DEVICE double square_root(double a) { return __dsqrt_rn(a); }

}  // namespace bnext::cuda::device

#endif

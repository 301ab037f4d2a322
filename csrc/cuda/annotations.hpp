// The words that make a function the device's, where a CUDA compiler reads them.
#pragma once

#if defined(__CUDACC__)
#define BNEXT_KERNEL __global__ void
#define BNEXT_DEVICE __device__ __forceinline__
// What happens once a slab, and would take registers from what happens to every value.
#define BNEXT_DEVICE_CALL __device__ __noinline__
#define BNEXT_HOST_DEVICE __host__ __device__ __forceinline__
#define BNEXT_UNROLL _Pragma("unroll")
#define BNEXT_UNROLL_BY(times) BNEXT_PRAGMA(unroll times)
#define BNEXT_PRAGMA(...) _Pragma(#__VA_ARGS__)
// Before a function of host and device that calls what it is given, whichever has that.
#define BNEXT_ANY_CALLEE _Pragma("nv_exec_check_disable")
#define BNEXT_LAUNCH_BOUNDS \
    __launch_bounds__(::bnext::cuda::kMostThreads, ::bnext::cuda::kBlocksPerProcessor)
#define BNEXT_CONSTANT __grid_constant__ const
#else
#define BNEXT_KERNEL void
#define BNEXT_DEVICE inline
#define BNEXT_DEVICE_CALL inline
#define BNEXT_HOST_DEVICE inline
#define BNEXT_UNROLL
#define BNEXT_UNROLL_BY(times)
#define BNEXT_ANY_CALLEE
#define BNEXT_LAUNCH_BOUNDS
#define BNEXT_CONSTANT const
#endif

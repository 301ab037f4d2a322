// KernelTable: the functions of a module of kernels that `_core` calls, over addresses. Of plain
// types, since the two modules are apart; a capsule hands it over.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"

namespace bnext::cuda {

enum class Operation : std::int32_t {
    forward,
    normalize,
    collect_stats,
    backward,
    backward_fixed,  // the statistics are constants
    backward_reduce,
    backward_apply,
};

// Addresses on the device; null where something is not given.
struct Addresses {
    void *x = nullptr, *y = nullptr, *dy = nullptr, *dx = nullptr;
    const void *weight = nullptr, *bias = nullptr;
    const void *mean = nullptr, *var = nullptr;  // given statistics; without, saved ones are taken
    void *running_mean = nullptr, *running_var = nullptr;
    std::int64_t* num_batches_tracked = nullptr;  // incremented
    double* statistics = nullptr;
    double* sums = nullptr;
    void *dweight = nullptr, *dbias = nullptr;
    void* workspace = nullptr;
    void *residual = nullptr, *dresidual = nullptr;
    double* of_z = nullptr;  // two rows: what forward keeps of an activation's argument
};

struct Scalars {
    double eps = 0;
    double momentum = 0;
    double correction = 1;         // 1: running_var takes m2 / (n - 1); 0: m2 / n
    double count = 0;              // values behind given sums; 0: those of the problem
    bool wide_statistics = false;  // given ones are float64
    double negative_slope = 0;
    std::int32_t activation = 0;  // an Activation
};

// layout: copies have to be made first; path: the forced path cannot run the call.
enum class Failure : std::int32_t { layout, path, value, runtime };

// x, dy, the residual, dx and dresidual: the most of a kernel
constexpr std::size_t kKernelOperands = 5;

// A call of a kernel. Operands are the data that is read, x first and the residual last, and then
// what is written, dresidual last.
struct KernelCall {
    Operation operation{};
    std::int32_t dtype = 0;  // a DType
    std::int32_t device = 0;
    std::int32_t operands = 0;
    Index rank = 0;
    Index channel_axis = 0;
    const Index* shape = nullptr;
    const Index* strides[kKernelOperands] = {};  // in elements
    Addresses at;
    Scalars scalars;
    void* stream = nullptr;
    // Of the caller: memory on the device for the time of the call, null after an error of its own;
    // and an error, after which nothing is enqueued.
    void* caller = nullptr;
    void* (*allocate)(void* caller, Index bytes) = nullptr;
    void (*fail)(void* caller, Failure why, const char* text) = nullptr;
    Index groups = 0;  // of an example's channels, in norms of cells: forward, backward; else 0
};

struct KernelTable {
    static constexpr const char* kName = "bnext.kernels";

    std::int32_t memory;  // the type of device, by DLPack's numbers
    void (*run)(const KernelCall* call);
};

}  // namespace bnext::cuda

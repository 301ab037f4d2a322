// RowTable: by which `_core` calls the kernels of rows of another module, over addresses. Of plain
// types, as KernelTable (table.hpp) is.
#pragma once

#include <cstdint>

#include "cuda/table.hpp"

namespace bnext::cuda {

// Rows of contiguous values, `pitch` elements apart.
struct RowsAt {
    void* data = nullptr;
    Index pitch = 0;
};

// A pass over rows. What is not given is null.
struct RowCall {
    bool backward = false;
    bool centered = true;
    std::int32_t dtype = 0;  // a DType
    std::int32_t device = 0;
    std::int32_t activation = 0;  // an Activation
    double negative_slope = 0;
    double eps = 0;
    Index rows = 0;
    Index width = 0;
    RowsAt x, dy, residual, out, dresidual;
    const void *weight = nullptr, *bias = nullptr;      // the forward pass's, or of g
    const void *z_weight = nullptr, *z_bias = nullptr;  // of the forward call, before an activation
    double* statistics = nullptr;                       // mean, mean_low and rstd of each row
    void *dweight = nullptr, *dbias = nullptr;          // null: not wanted
    void* stream = nullptr;
    // As in KernelCall.
    void* caller = nullptr;
    void* (*allocate)(void* caller, Index bytes) = nullptr;
    void (*fail)(void* caller, Failure why, const char* text) = nullptr;
};

struct RowTable {
    static constexpr const char* kName = "bnext.row_kernels";

    void (*run)(const RowCall* call);
};

}  // namespace bnext::cuda

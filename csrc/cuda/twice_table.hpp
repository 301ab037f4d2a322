// TwiceTable: by which `_core` calls the kernels of the double backward pass of another module,
// over addresses. Of plain types, as KernelTable (table.hpp) is.
#pragma once

#include <cstdint>

#include "cuda/table.hpp"

namespace bnext::cuda {

// The arrays of the data's size, in this order: what is read, then what is written.
enum class TwiceArray : std::int32_t {
    x,
    dy,
    ddx,
    ddresidual,
    residual,
    of_dy,
    of_x,
    of_residual,
};
constexpr std::size_t kTwiceArrays = 8;

// What a call does: all of it, or a phase, as members of a group call them.
enum class TwicePhases : std::int32_t {
    both,
    find_pilots,
    reduce,  // the sums about given pilots
    apply,   // by given pilots and sums
};

// What is not given is null.
struct TwiceCall {
    TwicePhases phases{};
    std::int32_t dtype = 0;  // a DType
    std::int32_t device = 0;
    std::int32_t activation = 0;  // an Activation
    double negative_slope = 0;
    bool centred = true;  // whether the statistics are the batch's
    Index rank = 0;
    Index channel_axis = 0;
    const Index* shape = nullptr;
    void* data[kTwiceArrays] = {};
    const Index* strides[kTwiceArrays] = {};  // in elements
    const void *weight = nullptr, *ddweight = nullptr, *ddbias = nullptr;
    void *of_weight = nullptr, *of_bias = nullptr;
    double* statistics = nullptr;
    double* of_z = nullptr;
    double* pilots = nullptr;  // two rows (core/double_backward.hpp)
    double* sums = nullptr;    // the rows of this part
    double* total = nullptr;   // and of all parts; null: those are all
    double count = 0;          // values behind `total`
    void* stream = nullptr;
    // As in KernelCall.
    void* caller = nullptr;
    void* (*allocate)(void* caller, Index bytes) = nullptr;
    void (*fail)(void* caller, Failure why, const char* text) = nullptr;
};

struct TwiceTable {
    static constexpr const char* kName = "bnext.twice_kernels";

    void (*run)(const TwiceCall* call);
};

}  // namespace bnext::cuda

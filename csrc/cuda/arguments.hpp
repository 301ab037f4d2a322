// What a launch hands to its kernel: one value, whatever the operation, so that all kernels have
// one type. Pointers that an operation has no use for are null.
#pragma once

#include <cstdint>

#include "core/formulas.hpp"
#include "core/statistics.hpp"
#include "cuda/kernel_shape.hpp"

namespace bnext::cuda {

// How the blocks of a slab find each other's sums.
enum class Exchange : int {
    none,     // one block a slab
    cluster,  // shared memory of the blocks of a cluster
    grid,     // workspace and a counter a slab; all blocks are resident
};

// Where the second phase's statistics come from.
enum class Statistics : int {
    saved,   // rows of an earlier phase (core/statistics.hpp)
    given,   // mean and var, of the parameters' type
    wide,    // mean and var, float64
    absent,  // constants: mean counts as 0, rstd is a saved one
};

// What kernels of rows (row_kernels.hpp) have besides. Operands have the bytes from a row to the
// next one as `outer`.
struct RowArguments {
    Index rows;
    Index width;           // values of a row
    Index units;           // of a row
    Index block_rows;      // that a block of a backward pass has
    Index stride;          // from a row of a forward pass to the next one of the same threads
    int lanes;             // threads of a row: some of a warp, or the block
    int kept;              // units of a thread, of each array, that stay in shared memory
    bool centered;         // layer normalization; false: RMS, whose mean is 0
    bool dresidual;        // whether a backward pass writes it
    const void* z_weight;  // of the forward call, from which a backward pass makes z again
    const void* z_bias;
    double* partials;  // workspace: slots of sums for every column; null: not wanted
    Index slots;
    Index slot_rows;  // of a slot that a launch over columns fills; else each block fills one
};

// Of the kernels of norms of cells (cell_kernels.hpp, small_slabs.hpp). The cut has as many
// channels as there are cells.
struct CellNumbers {
    Index of_slab = 0;         // cells
    Index slabs = 0;           // of all examples; `statistics` has rows of them
    double count = 0;          // values of a cell
    double* rows = nullptr;    // rows of statistics of cells
    double* shares = nullptr;  // rows of cells: their slab's sums, divided by the weight
    void* weight = nullptr;    // that these are divided by, of each parameter
    int team = 0;              // threads of a small slab: a warp, or a block
    int lanes = 0;             // threads of its cells: a power of two, up to a warp
};

// Of the double backward pass (twice_kernels.hpp), with x and dy as inputs.
struct TwiceNumbers {
    Operand ddx, ddresidual, of_dy, of_x, of_residual;  // without data where there is none
    const void *ddweight, *ddbias;
    void *of_weight, *of_bias;
    bool centred;      // whether the statistics are the batch's
    double* pilots;    // rows of `channels`: of ddx, and of g
    double* partials;  // workspace: sums of each part; null: sums are given
    double* sums;      // rows of this part: where they go, or given ones
    double* total;     // given rows of all parts
    double count;      // values behind those
    double* rows;      // workspace: coefficients
};

struct Arguments {
    Cut cut;
    Operand in[kMostInputs];    // x, dy
    Operand out[kMostOutputs];  // y or dx
    int kept;                   // batches of a part that stay in shared memory between the phases
    int slots;    // for batches there: those, and a ring for the others where there are any
    bool shares;  // parts merge a share of the channels each, and take the others' results
    Exchange exchange;
    Statistics source;
    const void* weight;
    const void* bias;
    const void* mean;  // given ones
    const void* var;
    void* running_mean;
    void* running_var;
    std::int64_t* num_batches_tracked;  // incremented
    double* statistics;                 // rows of `channels` (core/statistics.hpp)
    double* sums;                       // rows of `channels`: of dy, and of dy * (x - mean)
    void* dweight;
    void* dbias;
    Sums* partials;      // workspace: of a channel of a part
    Sums* totals;        // workspace: of a channel, where parts share the merging
    unsigned* counters;  // workspace, 0: two a slab
    double eps;
    double momentum;
    double correction;  // of the variance that is kept: 1, or 0 to leave it biased
    double* n;          // workspace: values behind `sums`, a channel each, where a launch made them
    double count;       // and where they were given

    // Of kernels with an activation alone (activated.hpp).
    bool sums_up, writes;  // the phases of the launch
    Fused fused;
    Operand residual, dresidual;  // without data where there is none
    double* of_z;                 // rows of `channels`: scale and shift of z; null: not kept

    RowArguments row;
    CellNumbers cells;
    TwiceNumbers twice;
};

// A channel's place in a row of the statistics.
BNEXT_HOST_DEVICE double* statistic(const Arguments& a, Row row, Index channel) {
    return a.statistics + static_cast<Index>(row) * a.cut.channels + channel;
}

using Kernel = void (*)(Arguments);

}  // namespace bnext::cuda

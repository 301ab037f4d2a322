// The decisions of a call over rows before its first thread starts.
#pragma once

#include <algorithm>

#include "core/row_tiling.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/machine.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/rows.hpp"
#include "cpu/schedule.hpp"
#include "cpu/team_size.hpp"

namespace bnext::cpu {

// None of them fixes a bit.
struct RowSetting {
    const KernelTable& table;
    RowTiling tiling;
    int threads;
    bool splits;  // rows, between threads
    Stores stores;
    Stores dx_stores;  // of the kernels of a backward pass
    Index block_rows;  // of a backward pass
    Index bytes;       // of an array

    // `operands`: arrays of the problem's size.
    RowSetting(const RowProblem& problem, DType dtype, int operands)
        : table(active_table()),
          tiling{problem.rows, problem.width},
          bytes(problem.elements() * size_of(dtype)) {
        table.mark_used();
        Machine machine = this_machine();
        if (is_small_work(problem.elements(), {operands, 2})) {
            machine.threads = 1;
        } else {
            machine.threads = free_threads(machine.threads, bytes);
        }
        threads = machine.threads;
        splits = threads > 1 && tiling.pieces() > 1 && problem.rows < Index{4} * threads;
        stores = dx_stores =
            streams_past_caches(machine, operands * bytes) ? Stores::streaming : Stores::cached;
        block_rows = tiling.block_rows();
    }

    // Tasks of a block of rows: at least so many bytes, so that to take one costs nothing.
    [[nodiscard]] Index task_rows() const {
        constexpr Index kTaskBytes = 64 * 1024;
        const Index row = std::max<Index>(bytes / std::max<Index>(tiling.rows, 1), 1);
        return std::max<Index>(kTaskBytes / row, 1);
    }
    // Of row k, or of the whole row.
    [[nodiscard]] ColumnRange piece(Index k) const {
        return {tiling.piece_begin(k), tiling.piece_begin(k + 1)};
    }
    [[nodiscard]] ColumnRange all_columns() const { return {0, tiling.width}; }
};

// The number that stands for a parameter that is not there.
template <class P>
class RowParameter {
public:
    RowParameter(const P* given, Index width, P otherwise) : given_(given) {
        if (given == nullptr) made_ = PoolArray<P>(static_cast<std::size_t>(width), otherwise);
    }
    [[nodiscard]] const P* data() const { return given_ != nullptr ? given_ : made_.data(); }

private:
    const P* given_;
    PoolArray<P> made_;
};

}  // namespace bnext::cpu

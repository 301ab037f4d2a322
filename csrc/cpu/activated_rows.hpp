// Activated passes over rows: y = act(z), z = norm(x) + residual, and g = dy * act'(z), which takes
// the place of dy in the gradients of rows.
//
// A row goes by pieces that stay in the first-level cache: z of a piece is made, a loop of the
// activation goes over it, and it is written. These steps are functions of an instruction set that
// are the same for every activation, so that there is little of them. Backward, g of a block of
// rows is made in memory of the thread's own, and the kernels of rows read it from there. 16-bit
// data are float32 in that memory, and so is dx, which is rounded from it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/activation.hpp"
#include "core/row_tiling.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/rows.hpp"

namespace bnext::cpu {

inline constexpr Index kRowPiece = 256;  // values

template <class T>
class ActivatedRows {
    using C = Compute<T>;

public:
    ActivatedRows(const KernelTable& table, const Matrix<const T>& x, const RowStatistics& of,
                  const RowsApplied<T>& applied, const Param<T>* weight, const Param<T>* bias)
        : table_(table),
          rows_(row_table_of(table)),
          kernels_(rows_.kernels<T>()),
          x_(x),
          of_(of),
          applied_(applied),
          weight_(weight),
          bias_(bias) {}

    // y of a block of rows.
    void write(const RowBlock& block, const Matrix<T>& y, const RowAccess& access) const {
        const bool streams = access.stores == Stores::streaming;
        for (Index r = block.begin; r < block.end; ++r) {
            const Index next = r - block.begin < access.ahead ? r + block.rows() : -1;
            if (is_extreme_row<T>(of_, r)) {
                write_row(kernels_.wide_steps, r, block.columns, y, false, next);
            } else {
                write_row(kernels_.steps, r, block.columns, y, streams, next);
            }
        }
        if (streams) rows_.fence();
    }

    // g of a block of rows; also as the gradient of the residual, if that is wanted.
    void derive(const RowBlock& block, const Matrix<const T>& dy, const Matrix<C>& g,
                Stores stores) const {
        const bool streams = stores == Stores::streaming && applied_.dresidual.data != nullptr;
        for (Index r = block.begin; r < block.end; ++r) {
            const bool extreme = is_extreme_row<T>(of_, r);
            for_each_piece(block.columns, g.at(r, 0), false, [&](Index j, Index n) {
                C* const to = g.at(r, j);
                extreme ? derive_extreme(r, j, n, dy, to) : derive_piece(r, j, n, dy, to);
                if (applied_.dresidual.data != nullptr) {
                    kernels_.steps.narrow(to, n, applied_.dresidual.at(r, j), streams);
                }
            });
        }
        if (streams) rows_.fence();
    }

private:
    [[nodiscard]] RowPiece<T> piece(Index r, Index j, Index n, Index next) const {
        const bool adds = applied_.residual.data != nullptr;
        return {x_.at(r, j),
                adds ? applied_.residual.at(r, j) : nullptr,
                next < 0 ? nullptr : x_.at(next, j),
                weight_ + j,
                bias_ + j,
                n};
    }

    // f(column, values) for the pieces of a row; where lines of the cache are streamed, the first
    // one ends where a line of what is written begins.
    template <class W, class F>
    static void for_each_piece(const ColumnRange& columns, const W* written, bool by_lines,
                               const F& f) {
        Index j = columns.begin;
        if (by_lines) {
            const auto past = reinterpret_cast<std::uintptr_t>(written + j) % kLine;
            const auto head = static_cast<Index>((kLine - past) % kLine / sizeof(W));
            if (head > 0 && head < columns.size()) {
                f(j, head);
                j += head;
            }
        }
        for (; j < columns.end; j += kRowPiece) f(j, std::min(kRowPiece, columns.end - j));
    }

    template <class S>
    void write_row(const RowSteps<T, S>& steps, Index r, const ColumnRange& columns,
                   const Matrix<T>& y, bool streams, Index next) const {
        const auto activate = table_.loops<S>(applied_.fused.activation).activate;
        const double slope = applied_.fused.negative_slope;
        alignas(kLine) S values[kRowPiece];
        for_each_piece(columns, y.at(r, 0), streams, [&](Index j, Index n) {
            steps.argument(of_, r, piece(r, j, n, next), values);
            activate(slope, values, static_cast<int>(n), nullptr);
            steps.narrow(values, n, y.at(r, j), streams);
        });
    }
    template <class S>
    void derive_row(const RowSteps<T, S>& steps, Index r, Index j, Index n,
                    const Matrix<const T>& dy, S* to) const {
        alignas(kLine) S of_dy[kRowPiece];
        steps.argument(of_, r, piece(r, j, n, -1), to);
        steps.widen(dy.at(r, j), n, of_dy);
        table_.loops<S>(applied_.fused.activation)
            .derive(applied_.fused.negative_slope, to, of_dy, static_cast<int>(n));
    }
    void derive_piece(Index r, Index j, Index n, const Matrix<const T>& dy, C* to) const {
        derive_row(kernels_.steps, r, j, n, dy, to);
    }
    void derive_extreme(Index r, Index j, Index n, const Matrix<const T>& dy, C* to) const {
        alignas(kLine) double values[kRowPiece];
        derive_row(kernels_.wide_steps, r, j, n, dy, values);
        rows_.kernels<C>().wide_steps.narrow(values, n, to, false);
    }

    const KernelTable& table_;
    const RowTable& rows_;
    const RowKernels<T>& kernels_;
    Matrix<const T> x_;
    const RowStatistics& of_;
    const RowsApplied<T>& applied_;
    const Param<T>*weight_, *bias_;
};

// What the kernels of a backward pass read in place of dy, block by block. K: their dtype.
template <class K>
class MadeGradients {
public:
    virtual ~MadeGradients() = default;
    // Whole rows of a block; or where a row has several pieces, a piece of one row.
    [[nodiscard]] virtual RowGradient<K> make(const RowBlock& block, int rank) const = 0;
    // Once dx of such a block was written.
    virtual void finish(const RowBlock& block, int rank) const = 0;
};

template <class T>
class ActivatedGradients final : public MadeGradients<Compute<T>> {
    using C = Compute<T>;
    static constexpr bool kConverts = !std::is_same_v<T, C>;

public:
    // `of`: weight, statistics and sums of all rows.
    ActivatedGradients(const ActivatedRows<T>& rows, const RowTable& table, Index most_rows,
                       Index width, int threads, Stores stores, const Matrix<const T>& dy,
                       const Matrix<const T>& x, const Matrix<T>& dx, const RowGradient<C>& of)
        : rows_(rows),
          table_(table),
          kernels_(table.kernels<T>()),
          dy_(dy),
          x_(x),
          dx_(dx),
          of_(of),
          stores_(stores),
          pitch_(round_up(std::min(width, RowTiling::kPieceValues), kRowPiece)),
          extent_(most_rows * pitch_),
          made_(static_cast<std::size_t>(extent_ * threads * (kConverts ? 3 : 1))) {}

    [[nodiscard]] RowGradient<C> make(const RowBlock& block, int rank) const override {
        const Matrix<C> g = room(block, rank, 0);
        rows_.derive(block, dy_, g, stores_);
        RowGradient<C> of = of_;
        of.dy = as_const(g);
        if constexpr (kConverts) {
            const Matrix<C> x = room(block, rank, 1);
            const Index from = block.columns.begin;
            for (Index r = block.begin; r < block.end; ++r) {
                kernels_.steps.widen(x_.at(r, from), block.columns.size(), x.at(r, from));
            }
            of.x = of.next_x = as_const(x);
            of.next_dy = of.dy;
            of.dx = room(block, rank, 2);
        } else {
            of.x = of.next_x = x_;
            of.next_dy = dy_;
            of.dx = dx_;
        }
        return of;
    }
    void finish(const RowBlock& block, int rank) const override {
        if constexpr (kConverts) {
            const bool streams = stores_ == Stores::streaming;
            const Matrix<C> dx = room(block, rank, 2);
            const Index from = block.columns.begin;
            for (Index r = block.begin; r < block.end; ++r) {
                kernels_.steps.narrow(dx.at(r, from), block.columns.size(), dx_.at(r, from),
                                      streams);
            }
            if (streams) table_.fence();
        }
    }
    // Whether the kernels' dx, and what they prefetch, are the caller's arrays.
    static constexpr bool kInPlace = !kConverts;

private:
    static Matrix<const C> as_const(const Matrix<C>& m) { return {m.data, m.pitch}; }
    [[nodiscard]] Matrix<C> room(const RowBlock& block, int rank, int which) const {
        const Index place = rank * (kConverts ? 3 : 1) + which;
        const Index past = block.begin * pitch_ + block.columns.begin;  // of row 0, column 0
        const auto begin = reinterpret_cast<std::uintptr_t>(made_.data() + place * extent_);
        const auto bytes = static_cast<std::uintptr_t>(past) * sizeof(C);
        return {reinterpret_cast<C*>(begin - bytes), pitch_};
    }

    const ActivatedRows<T>& rows_;
    const RowTable& table_;
    const RowKernels<T>& kernels_;
    Matrix<const T> dy_, x_;
    Matrix<T> dx_;
    RowGradient<C> of_;
    Stores stores_;
    Index pitch_, extent_;
    PoolArray<C> made_;
};

}  // namespace bnext::cpu

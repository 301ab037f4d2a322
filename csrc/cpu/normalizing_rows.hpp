// The forward pass over rows: their moments, and what is written.
#pragma once

#include <algorithm>
#include <optional>

#include "core/moments.hpp"
#include "core/statistics.hpp"
#include "cpu/activated_rows.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_setting.hpp"

namespace bnext::cpu {

template <class T>
class Normalizing {
public:
    // `activated`: null without an activation and a residual.
    Normalizing(const RowProblem& problem, const RowSetting& setting, const Matrix<const T>& x,
                const Matrix<T>& y, const Param<T>* weight, const Param<T>* bias, double eps,
                const RowStatistics& out, const ActivatedRows<T>* activated,
                RowPhases phases = RowPhases::both, double* m2 = nullptr)
        : problem_(problem),
          setting_(setting),
          kernels_(row_table_of(setting.table).kernels<T>()),
          x_(x),
          y_(y),
          weight_(weight),
          bias_(bias),
          eps_(eps),
          out_(out),
          activated_(activated),
          phases_(phases),
          m2_(m2) {}

    void run() const { setting_.splits ? run_split() : run_by_rows(); }

private:
    static constexpr Index kMostRows = 64;  // of a block: their sums are on the stack

    void run_by_rows() const {
        // A block of rows that the first-level cache holds.
        constexpr Index kValues = 4096;
        const Index step =
            std::clamp<Index>(kValues / std::max<Index>(problem_.width, 1), 1, kMostRows);
        const Index rows = round_up(setting_.task_rows(), step);
        TaskShares tasks(divide_up(problem_.rows, rows), setting_.threads);
        parallel(setting_.threads, setting_.bytes, [&](const Team& team) {
            double mean[kMostRows], m2[kMostRows];
            Index task = 0;
            while (tasks.take(team.rank, task)) {
                const Index end = std::min((task + 1) * rows, problem_.rows);
                for (Index r = task * rows; r < end; r += step) {
                    const Index last = std::min(r + step, end);
                    if (phases_ != RowPhases::second) {
                        for (Index k = 0; k < setting_.tiling.pieces(); ++k) {
                            add_piece(r, last, k, mean, m2);
                        }
                        finish(r, last, mean, m2);
                    }
                    if (phases_ == RowPhases::first) continue;
                    const Index ahead = std::min(last - r, end - last);
                    write({r, last, setting_.all_columns()}, ahead);
                }
            }
        });
    }

    // Moments of piece k of rows, behind those before it.
    void add_piece(Index begin, Index end, Index k, double* mean, double* m2) const {
        const RowBlock block{begin, end, setting_.piece(k)};
        if (k == 0)
            return kernels_.moments(x_, problem_.width, block, problem_.centered, {mean, m2});
        double more_mean[kMostRows], more_m2[kMostRows];
        kernels_.moments(x_, problem_.width, block, problem_.centered, {more_mean, more_m2});
        for (Index r = 0; r < block.rows(); ++r) {
            merge_piece(k, mean[r], m2[r], more_mean[r], more_m2[r]);
        }
    }
    void merge_piece(Index k, double& mean, double& m2, double more_mean, double more_m2) const {
        if (!problem_.centered) {
            m2 += more_m2;
            return;
        }
        const auto done = static_cast<double>(setting_.piece(k).begin);
        const auto more = static_cast<double>(setting_.piece(k).size());
        bnext::merge(mean, m2, more_mean, more_m2, MergeShares(done, more));
    }

    // The sums of rows are final; means are about the row's origin.
    void finish(Index begin, Index end, const double* mean, const double* m2) const {
        double var[kMostRows];
        for (Index r = begin; r < end; ++r) {
            HighLow exact{0.0, 0.0};
            if (problem_.centered)
                exact = two_sum(origin_of_row(x_.row(r), problem_.width), mean[r - begin]);
            out_.mean[r] = exact.high;
            out_.mean_low[r] = kHasMeanLow<T> ? exact.low : 0.0;
        }
        if (m2_ != nullptr) {
            std::copy_n(m2, end - begin, m2_ + begin);
            return;
        }
        setting_.table.finish_statistics(end - begin, m2, static_cast<double>(problem_.width), eps_,
                                         var, out_.rstd + begin);
    }
    void write(const RowBlock& block, Index ahead) const {
        if (activated_ != nullptr) return activated_->write(block, y_, {setting_.stores, ahead});
        kernels_.normalize(x_, y_, block, out_, weight_, bias_, {setting_.stores, ahead});
    }

    void run_split() const {
        const Index pieces = setting_.tiling.pieces();
        const Index tasks = problem_.rows * pieces;
        const PoolArray<double> slots(static_cast<std::size_t>(2 * tasks));
        double* const mean = slots.data();
        double* const m2 = mean + tasks;
        const auto block_of = [&](Index task) {
            const Index row = task / pieces;
            return RowBlock{row, row + 1, setting_.piece(task % pieces)};
        };
        parallel(setting_.threads, setting_.bytes, [&](const Team& team) {
            const Index first = team.share_begin(tasks), last = team.share_end(tasks);
            if (phases_ == RowPhases::second) {
                for (Index task = last; task-- > first;) write(block_of(task), 0);
                return;
            }
            for (Index task = first; task < last; ++task) {
                kernels_.moments(x_, problem_.width, block_of(task), problem_.centered,
                                 {mean + task, m2 + task});
            }
            team.barrier();
            const Index end = team.share_end(problem_.rows);
            for (Index row = team.share_begin(problem_.rows); row < end; ++row) {
                const Index of = row * pieces;
                for (Index k = 1; k < pieces; ++k) {
                    merge_piece(k, mean[of], m2[of], mean[of + k], m2[of + k]);
                }
                finish(row, row + 1, mean + of, m2 + of);
            }
            if (phases_ == RowPhases::first) return;
            team.barrier();
            for (Index task = last; task-- > first;) write(block_of(task), 0);
        });
    }

    const RowProblem& problem_;
    const RowSetting& setting_;
    const RowKernels<T>& kernels_;
    const Matrix<const T>& x_;
    const Matrix<T>& y_;
    const Param<T>*weight_, *bias_;
    double eps_;
    const RowStatistics& out_;
    const ActivatedRows<T>* activated_;
    RowPhases phases_;
    double* m2_;  // where m2 goes, of the first phase alone
};

}  // namespace bnext::cpu

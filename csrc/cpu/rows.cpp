// Whole rows, where there are enough of them: a task has a block of rows, sums it and writes it
// from a cache. Few and long rows are split: a task has a piece of a row, and threads wait for each
// other between the phases. Either way the sums of a row's pieces are merged in the order of
// columns, and the sums of chunks, for each column, in the order of rows: the same bits.
#include "cpu/rows.hpp"

#include <algorithm>
#include <optional>

#include "core/row_tiling.hpp"
#include "cpu/activated_rows.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/normalizing_rows.hpp"
#include "cpu/parallel.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/row_setting.hpp"
#include "cpu/schedule.hpp"

namespace bnext::cpu {
namespace {

// T: the dtype of the kernels. The data may have another one where `made` is given.
template <class T>
class Differentiating {
public:
    // `of.sums` are to be filled. `made`: null where dy is read as it is.
    Differentiating(const RowProblem& problem, const RowSetting& setting, const RowGradient<T>& of,
                    double* dweight, double* dbias, RowPhases phases,
                    const MadeGradients<T>* made = nullptr)
        : problem_(problem),
          setting_(setting),
          kernels_(row_table_of(setting.table).kernels<T>()),
          of_(of),
          dweight_(dweight),
          dbias_(dbias),
          phases_(phases),
          made_(made) {
        if (dweight == nullptr) return;
        const Index rows = problem.centered ? 2 : 1;
        slots_ = PoolArray<double>(
            static_cast<std::size_t>(setting.tiling.chunks() * rows * problem.width));
    }

    void run() const {
        parallel(setting_.threads, setting_.bytes, [&](const Team& team) {
            setting_.splits ? split(team) : by_rows(team);
            if (dweight_ == nullptr || phases_ == RowPhases::first) return;
            team.barrier();
            merge_chunks({team.share_begin(problem_.width), team.share_end(problem_.width)});
        });
    }

private:
    // Each member its own chunks.
    void by_rows(const Team& team) const {
        const RowTiling& tiling = setting_.tiling;
        const Index last = team.share_end(tiling.chunks());
        for (Index chunk = team.share_begin(tiling.chunks()); chunk < last; ++chunk) {
            const Index end = end_of(chunk);
            for (Index r = chunk * tiling.chunk_rows(); r < end;) {
                const Index next = std::min(r + setting_.block_rows, end);
                const Index ahead = std::min(next - r, problem_.rows - next);
                differentiate({r, next, setting_.all_columns()}, chunk, ahead, team.rank);
                r = next;
            }
        }
    }
    [[nodiscard]] Index end_of(Index chunk) const {
        return std::min((chunk + 1) * setting_.tiling.chunk_rows(), problem_.rows);
    }
    // Both phases of a block of whole rows; of one row, where rows have several pieces and dy is
    // made.
    void differentiate(const RowBlock& block, Index chunk, Index ahead, int rank) const {
        const Index pieces = setting_.tiling.pieces();
        const bool makes_pieces = made_ != nullptr && pieces > 1;
        std::optional<RowGradient<T>> made;
        if (made_ != nullptr && !makes_pieces) made = made_->make(block, rank);
        const RowGradient<T>* of = made ? &*made : &of_;
        Index summed = phases_ == RowPhases::second ? block.begin : block.end;
        if (pieces == 1 && summed > block.begin) {  // all rows by one call
            const RowSums here{of_.sums.first + block.begin, of_.sums.second + block.begin};
            kernels_.reduce[problem_.centered](*of, block, here);
            summed = block.begin;
        }
        for (Index row = block.begin; row < summed; ++row) {
            for (Index k = 0; k < pieces; ++k) {
                double a = 0, b = 0;
                const RowBlock piece{row, row + 1, setting_.piece(k)};
                if (makes_pieces) of = &made.emplace(made_->make(piece, rank));
                sum_piece(*of, piece, a, b);
                of_.sums.first[row] = k == 0 ? a : of_.sums.first[row] + a;
                of_.sums.second[row] = k == 0 ? b : of_.sums.second[row] + b;
            }
        }
        if (phases_ == RowPhases::first) return;
        if (makes_pieces) {
            for (Index k = 0; k < pieces; ++k) {
                make_and_write({block.begin, block.end, setting_.piece(k)}, chunk, rank);
            }
            return;
        }
        write(*of, block, chunk, ahead);
        if (made_ != nullptr) made_->finish(block, rank);
    }
    void sum_piece(const RowGradient<T>& of, const RowBlock& piece, double& a, double& b) const {
        kernels_.reduce[problem_.centered](of, piece, {&a, &b});
    }
    void make_and_write(const RowBlock& piece, Index chunk, int rank) const {
        write(made_->make(piece, rank), piece, chunk, 0);
        made_->finish(piece, rank);
    }
    void write(const RowGradient<T>& of, const RowBlock& block, Index chunk, Index ahead) const {
        const Index width = problem_.width;
        double* const first = dweight_ == nullptr
                                  ? nullptr
                                  : slots_.data() + chunk * (problem_.centered ? 2 : 1) * width;
        double* const second = first != nullptr && problem_.centered ? first + width : nullptr;
        const bool fresh = block.begin == chunk * setting_.tiling.chunk_rows();
        kernels_.differentiate[problem_.centered](of, block, first, second, fresh,
                                                  {setting_.dx_stores, ahead});
    }

    // Members share the pieces of rows, wait for each other, and share columns.
    void split(const Team& team) const {
        const RowTiling& tiling = setting_.tiling;
        const Index pieces = tiling.pieces(), tasks = problem_.rows * pieces;
        const bool sums = phases_ != RowPhases::second;
        const Index end = sums ? team.share_end(tasks) : 0;
        for (Index task = team.share_begin(tasks); task < end; ++task) {
            const Index row = task / pieces;
            const RowBlock piece{row, row + 1, setting_.piece(task % pieces)};
            sum_piece(made_ != nullptr ? made_->make(piece, team.rank) : of_, piece,
                      sum_of_piece(task)[0], sum_of_piece(task)[1]);
        }
        team.barrier();
        const Index last = sums ? team.share_end(problem_.rows) : 0;
        for (Index row = team.share_begin(problem_.rows); row < last; ++row) {
            double a = sum_of_piece(row * pieces)[0], b = sum_of_piece(row * pieces)[1];
            for (Index k = 1; k < pieces; ++k) {
                a += sum_of_piece(row * pieces + k)[0];
                b += sum_of_piece(row * pieces + k)[1];
            }
            of_.sums.first[row] = a;
            of_.sums.second[row] = b;
        }
        team.barrier();
        if (phases_ == RowPhases::first) return;
        const Index shares = tiling.chunks() * pieces;
        for (Index share = team.share_end(shares); share-- > team.share_begin(shares);) {
            const Index chunk = share / pieces;
            const ColumnRange columns = setting_.piece(share % pieces);
            for (Index r = chunk * tiling.chunk_rows(); r < end_of(chunk); ++r) {
                const RowBlock piece{r, r + 1, columns};
                made_ != nullptr ? make_and_write(piece, chunk, team.rank)
                                 : write(of_, piece, chunk, 0);
            }
        }
    }
    [[nodiscard]] double* sum_of_piece(Index task) const {
        return of_.sums.first + 2 * (problem_.rows + task);
    }

    void merge_chunks(const ColumnRange& columns) const {
        const Index width = problem_.width, chunks = setting_.tiling.chunks();
        const Index step = (problem_.centered ? 2 : 1) * width;
        const auto merge = [&](const double* slots, double* out) {
            std::copy(slots + columns.begin, slots + columns.end, out + columns.begin);
            for (Index k = 1; k < chunks; ++k) {
                const double* const more = slots + k * step;
                for (Index c = columns.begin; c < columns.end; ++c) out[c] += more[c];
            }
        };
        merge(slots_.data(), dweight_);
        if (problem_.centered) merge(slots_.data() + width, dbias_);
    }

    const RowProblem& problem_;
    const RowSetting& setting_;
    const RowKernels<T>& kernels_;
    const RowGradient<T>& of_;
    double *dweight_, *dbias_;
    RowPhases phases_;
    const MadeGradients<T>* made_;
    PoolArray<double> slots_;
};

// The values of a row, of all members of a group.
Index width_of(const RowProblem& problem, const DividedRows& divided) {
    return divided.phases == RowPhases::both ? problem.width : divided.width;
}

// The backward pass behind an activation.
template <class T>
void differentiate_activated(const RowProblem& problem, RowSetting& setting,
                             const Matrix<const T>& dy, const Matrix<const T>& x,
                             const Matrix<T>& dx, const Param<T>* weight, const RowStatistics& of,
                             const RowSums& sums, double* dweight, double* dbias,
                             const RowsApplied<T>& applied, const DividedRows& divided) {
    using C = Compute<T>;
    using Made = ActivatedGradients<T>;
    // Less than without: g is beside x and dy.
    constexpr Index kValues = 8192;
    setting.block_rows = std::clamp<Index>(kValues / problem.width, 1, setting.tiling.block_rows());
    if (!Made::kInPlace) setting.dx_stores = Stores::cached;
    const RowParameter<Param<T>> scale(applied.weight, problem.width, 1),
        shift(applied.bias, problem.width, 0);
    const ActivatedRows<T> rows(setting.table, x, of, applied, scale.data(), shift.data());
    const RowGradient<C> gradient{{}, {}, {}, weight, of, sums, width_of(problem, divided)};
    const Made made(rows, row_table_of(setting.table), setting.block_rows, problem.width,
                    setting.threads, setting.stores, dy, x, dx, gradient);
    Differentiating<C>(problem, setting, gradient, dweight, dbias, divided.phases, &made).run();
}

}  // namespace

template <class T>
void normalize_rows(const RowProblem& problem, const Matrix<const T>& x, const Matrix<T>& y,
                    const Param<T>* weight, const Param<T>* bias, double eps,
                    const RowStatistics& out, const RowsApplied<T>& applied, RowPhases phases) {
    if (problem.elements() == 0 && phases == RowPhases::second) return;
    if (problem.elements() == 0) {  // rows without values have PyTorch's statistics
        const auto rows = problem.rows;
        std::fill_n(out.mean, rows, 0.0);
        std::fill_n(out.mean_low, rows, 0.0);
        std::fill_n(out.rstd, rows, 0.0);
        return;
    }
    const RowSetting setting(problem, DTypeOf<T>::value, applied.fused.residual ? 3 : 2);
    const RowParameter<Param<T>> scale(weight, problem.width, 1), shift(bias, problem.width, 0);
    std::optional<ActivatedRows<T>> activated;
    if (applied.fused.any()) {
        activated.emplace(setting.table, x, out, applied, scale.data(), shift.data());
    }
    Normalizing<T>(problem, setting, x, y, scale.data(), shift.data(), eps, out,
                   activated ? &*activated : nullptr, phases)
        .run();
}

template <class T>
void collect_rows(const RowProblem& problem, const Matrix<const T>& x, const RowStatistics& mean,
                  double* m2) {
    if (problem.elements() == 0) {
        for (double* const row : {mean.mean, mean.mean_low, m2}) {
            std::fill_n(row, problem.rows, 0.0);
        }
        return;
    }
    const RowSetting setting(problem, DTypeOf<T>::value, 1);
    const Matrix<T> nothing{nullptr, 1};
    Normalizing<T>(problem, setting, x, nothing, nullptr, nullptr, 0.0, mean, nullptr,
                   RowPhases::first, m2)
        .run();
}

void finish_rows(Index rows, const double* m2, double n, double eps, double* rstd) {
    const PoolArray<double> var(static_cast<std::size_t>(rows));
    active_table().finish_statistics(rows, m2, n, eps, var.data(), rstd);
}

template <class T>
void differentiate_rows(const RowProblem& problem, const Matrix<const T>& dy,
                        const Matrix<const T>& x, const Matrix<T>& dx, const Param<T>* weight,
                        const RowStatistics& of, double* dweight, double* dbias,
                        const RowsApplied<T>& applied, const DividedRows& divided) {
    if (problem.elements() == 0) {
        if (divided.phases == RowPhases::first) {
            std::fill_n(divided.sums.first, problem.rows, 0.0);
            std::fill_n(divided.sums.second, problem.rows, 0.0);
        }
        for (double* const sums : {dweight, dbias}) {
            if (sums != nullptr) std::fill_n(sums, problem.width, 0.0);
        }
        return;
    }
    const bool activated = applied.fused.changes_backward();
    const int residuals = activated && applied.fused.residual ? 2 : 0;  // read, and its gradient
    RowSetting setting(problem, DTypeOf<T>::value, 3 + residuals);
    const RowParameter<Param<T>> scale(weight, problem.width, 1);
    // Of each row, and where rows are split, of each piece, two by two.
    const Index pieces = setting.splits ? setting.tiling.pieces() : 0;
    const PoolArray<double> sums(static_cast<std::size_t>(2 * problem.rows * (1 + pieces)));
    const RowSums of_rows{sums.data(), sums.data() + problem.rows};
    if (divided.phases == RowPhases::second) {
        std::copy_n(divided.sums.first, problem.rows, of_rows.first);
        std::copy_n(divided.sums.second, problem.rows, of_rows.second);
    }
    if (activated) {
        differentiate_activated(problem, setting, dy, x, dx, scale.data(), of, of_rows, dweight,
                                dbias, applied, divided);
    } else {
        const RowGradient<T> gradient{
            dy, x, dx, scale.data(), of, of_rows, width_of(problem, divided)};
        Differentiating<T>(problem, setting, gradient, dweight, dbias, divided.phases).run();
    }
    if (divided.phases == RowPhases::first) {
        std::copy_n(of_rows.first, problem.rows, divided.sums.first);
        std::copy_n(of_rows.second, problem.rows, divided.sums.second);
    }
}

#define BNEXT_OF_ROWS(T)                                                                         \
    template void normalize_rows(const RowProblem&, const Matrix<const T>&, const Matrix<T>&,    \
                                 const Param<T>*, const Param<T>*, double, const RowStatistics&, \
                                 const RowsApplied<T>&, RowPhases);                              \
    template void collect_rows(const RowProblem&, const Matrix<const T>&, const RowStatistics&,  \
                               double*);                                                         \
    template void differentiate_rows(const RowProblem&, const Matrix<const T>&,                  \
                                     const Matrix<const T>&, const Matrix<T>&, const Param<T>*,  \
                                     const RowStatistics&, double*, double*,                     \
                                     const RowsApplied<T>&, const DividedRows&);
BNEXT_OF_ROWS(float)
BNEXT_OF_ROWS(double)
BNEXT_OF_ROWS(float16)
BNEXT_OF_ROWS(bfloat16)
#undef BNEXT_OF_ROWS

}  // namespace bnext::cpu

#include "cpu/double_backward.hpp"

#include <algorithm>
#include <memory>
#include <optional>

#include "cpu/double_backward_kernels.hpp"
#include "cpu/parallel.hpp"
#include "cpu/phases.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::cpu {
namespace {

constexpr int at(TwiceSum which) { return static_cast<int>(which); }

// Numbers of all columns: the rows of double that kernels read.
class ColumnRows {
public:
    ColumnRows(int rows, Index columns)
        : columns_(columns), values_(static_cast<std::size_t>(rows * columns), 0.0) {}
    [[nodiscard]] double* row(int r) const { return values_.data() + r * columns_; }

private:
    Index columns_;
    PoolArray<double> values_;
};

template <class T>
class DoubleBackwardPass {
public:
    DoubleBackwardPass(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                       const StatisticsIn& of, const Param<T>* weight, bool centred,
                       const TwiceArrays<T>& arrays, const Applied<T>* applied)
        : problem_(problem),
          of_(of),
          weight_(weight),
          arrays_(arrays),
          fused_(applied != nullptr ? applied->fused : Fused{}),
          setting_(prepare<T>(problem, Work{operands(), 2}, Pass::backward,
                              fused_.changes_backward() ? Epilogue::activated : Epilogue::none)),
          kernels_(double_backward_table_of(setting_.table).template kernels<T>()),
          layout_(static_cast<int>(setting_.plan.tiling.walk())),
          columns_(setting_.plan.tiling.columns()),
          rows_(kTwiceRows, problem.channels * columns_),
          activated_{fused_, applied != nullptr ? applied->flags : FlagBits{}} {
        pass_ = {x,
                 dy,
                 arrays.ddx,
                 arrays.ddresidual,
                 fused_.reads_residual() ? applied->residual : View<const T>{nullptr, {}},
                 arrays.of_dy,
                 arrays.of_x,
                 fused_.is_piecewise_linear() ? View<T>{nullptr, {}} : arrays.of_residual,
                 activated_,
                 centred,
                 {},
                 nullptr,
                 {},
                 {}};
        for (int r = 0; r < kTwiceRows; ++r) pass_.row[r] = rows_.row(r);
        for (Index c = 0; c < problem.channels; ++c) {
            set(TwiceRow::mean, c, of.mean()[c]);
            set(TwiceRow::scale, c, scale_of(c));
        }
        if (fused_.changes_backward() && !activated_.flags.are_kept()) take_z(applied->of_forward);
        sums_ = pass_.is_curved() ? kTwiceSums : kTwiceSumsOfLines;
    }

    void run() const { setting_.plan.schedule == Schedule::split ? split() : by_channels(); }

private:
    [[nodiscard]] int operands() const {
        const auto there = [](const auto& view) { return view.data != nullptr ? 1 : 0; };
        return 2 + there(arrays_.ddx) + there(arrays_.ddresidual) + there(arrays_.of_dy) +
               there(arrays_.of_x) + there(arrays_.of_residual) + int{fused_.reads_residual()};
    }
    void set(TwiceRow which, Index c, double value) const {
        std::fill_n(rows_.row(static_cast<int>(which)) + c * columns_, columns_, value);
    }
    [[nodiscard]] double scale_of(Index c) const {
        return value_or(weight_, c, 1.0) * of_.rstd()[c];
    }

    // z as the forward pass had it.
    void take_z(const Affine<T>& affine) {
        const Terms<T> terms{of_.mean(), of_.mean_low(), of_.rstd(), affine.weight, affine.bias};
        of_z_ = std::make_unique<RowsOfZ<T>>(problem_, setting_, terms, activated_);
        for (std::size_t r = 0; r < RowsOfZ<T>::kRows; ++r) pass_.z[r] = of_z_->all.row[r];
        if (!kHasExtremes<T> || !of_z_->any_extreme) return;
        const Index all = problem_.channels * columns_;
        exact_.emplace(3, all);
        is_extreme_ = PoolArray<bool>(static_cast<std::size_t>(all), false);
        for (Index c = 0; c < problem_.channels; ++c) {
            const NormConstants by = norm_constants<T>(c, of_, affine);
            for (Index k = c * columns_; k < (c + 1) * columns_; ++k) {
                is_extreme_.data()[k] = by.is_extreme(of_.rstd()[c]);
                exact_->row(0)[k] = by.mean;
                exact_->row(1)[k] = by.scale;
                exact_->row(2)[k] = by.bias;
            }
        }
        pass_.is_extreme = is_extreme_.data();
        for (int r = 0; r < 3; ++r) pass_.exact[r] = exact_->row(r);
    }

    void reduce(const Region& region, double* sums, Index pitch) const {
        kernels_.reduce[layout_](pass_, region, sums, pitch);
    }
    // Adds the sums of another chunk, of so many columns.
    void merge(double* sums, Index pitch, const double* more, Index more_pitch,
               Index columns) const {
        for (int s = 0; s < sums_; ++s) {
            for (Index k = 0; k < columns; ++k) sums[s * pitch + k] += more[s * more_pitch + k];
        }
    }

    // The sums are final: coefficients, and gradients of parameters.
    void finish(const ChannelRange& channels, const double* sums, Index pitch) const {
        for (Index c = channels.begin; c < channels.end; ++c) {
            double of_channel[kTwiceSums] = {};
            for (int s = 0; s < sums_; ++s) {
                const double* const from = sums + s * pitch + (c - channels.begin) * columns_;
                for (Index i = 0; i < columns_; ++i) of_channel[s] += from[i];
            }
            finish_channel(c, of_channel);
        }
    }
    void finish_channel(Index c, const double (&sums)[kTwiceSums]) const {
        const Tiling& tiling = setting_.plan.tiling;
        const auto n = static_cast<double>(problem_.count());
        const double rstd = of_.rstd()[c], scale = scale_of(c);
        const double low = kHasMeanLow<T> ? of_.mean_low()[c] : 0.0;
        const double p = arrays_.ddweight != nullptr ? arrays_.ddweight[c] : 0.0;
        const double q = arrays_.ddbias != nullptr ? arrays_.ddbias[c] : 0.0;

        double u = 0, g = 0, with_u = 0, with_g = 0, covariance = 0;  // E[u], E[g], U, G, K
        if (pass_.centred) {
            u = sums[at(TwiceSum::u)] / n;
            g = sums[at(TwiceSum::g)] / n;
            with_u = rstd * (sums[at(TwiceSum::ud)] / n - low * u);
            with_g = rstd * (sums[at(TwiceSum::gd)] / n - low * g);
            covariance = sums[at(TwiceSum::ug)] / n - u * g;
        }
        const double slope = rstd * (p - scale * with_u);
        const double shift = q - slope * low;
        double of_d = -rstd * rstd * (scale * (covariance - 3.0 * with_u * with_g) + p * with_g);
        double of_weight = pass_.centred ? rstd * n * (covariance - with_u * with_g)
                                         : rstd * sums[at(TwiceSum::ug)];
        double of_bias = 0, offset = 0;
        if (pass_.is_curved()) {
            // h = k + shift_of_k + slope d
            const double shift_of_k = shift - scale * u;
            const double e = sums[at(TwiceSum::e)], ed = sums[at(TwiceSum::ed)];
            of_bias = sums[at(TwiceSum::ek)] + shift_of_k * e + slope * ed;
            const double of_td = sums[at(TwiceSum::ekd)] + shift_of_k * ed +
                                 slope * sums[at(TwiceSum::edd)] - low * of_bias;
            of_weight += rstd * of_td;
            if (pass_.centred) {
                of_d -= rstd * rstd * (scale * (of_td / n));
                offset = -scale * (of_bias / n);
            }
        }
        set(TwiceRow::mean_u, c, pass_.pilot_of_u(tiling, c) + u);
        set(TwiceRow::mean_g, c, pass_.pilot_of_g(tiling, c) + g);
        set(TwiceRow::slope, c, slope);
        set(TwiceRow::shift, c, shift);
        set(TwiceRow::of_u, c, -rstd * (scale * with_g));
        set(TwiceRow::of_d, c, of_d);
        set(TwiceRow::offset, c, offset - of_d * low);
        if (arrays_.of_weight != nullptr) arrays_.of_weight[c] = of_weight;
        if (arrays_.of_bias != nullptr) arrays_.of_bias[c] = of_bias;
    }

    [[nodiscard]] bool writes() const {
        return pass_.of_dy.data != nullptr || pass_.of_x.data != nullptr ||
               pass_.of_residual.data != nullptr;
    }
    void write(const Region& region) const {
        if (writes()) kernels_.write[layout_](pass_, region, setting_.stores);
    }

    // A task is both phases of a block of channels (two_phase.hpp).
    void by_channels() const {
        const Plan& plan = setting_.plan;
        const int threads = plan.schedule == Schedule::serial ? 1 : setting_.threads;
        const Index width = plan.block * columns_, room = 2 * sums_ * width;
        const PoolArray<double> rooms(static_cast<std::size_t>(threads * room));
        TaskShares tasks(plan.blocks, threads);
        parallel(threads, problem_.bytes(), [&](const Team& team) {
            double* const sums = rooms.data() + team.rank * room;
            double* const more = sums + sums_ * width;
            Index task = 0;
            while (tasks.take(team.rank, task)) {
                const ChannelRange channels = block_of_channels(problem_, plan.block, task);
                reduce({&plan.tiling, plan.tiling.chunk(0), channels}, sums, width);
                for (Index k = 1; k < plan.tiling.chunks(); ++k) {
                    reduce({&plan.tiling, plan.tiling.chunk(k), channels}, more, width);
                    merge(sums, width, more, width, channels.size() * columns_);
                }
                finish(channels, sums, width);
                write({&plan.tiling, plan.tiling.all(), channels});
            }
        });
    }

    // Members share the chunks of all channels, whose sums have slots.
    void split() const {
        const Plan& plan = setting_.plan;
        const Index chunks = plan.tiling.chunks(), pitch = problem_.channels * columns_;
        const PoolArray<double> slots(static_cast<std::size_t>(sums_ * pitch * chunks));
        const auto slot = [&](Index k) { return slots.data() + k * sums_ * pitch; };
        const Index tasks = plan.blocks * chunks;
        const auto region_of = [&](Index task, Index& chunk) {
            const bool planar = plan.tiling.walk() == Layout::planar;
            chunk = planar ? task % chunks : task / plan.blocks;
            const Index k = planar ? task / chunks : task % plan.blocks;
            return Region{&plan.tiling, plan.tiling.chunk(chunk),
                          block_of_channels(problem_, plan.block, k)};
        };
        parallel(setting_.threads, problem_.bytes(), [&](const Team& team) {
            const Index first = team.share_begin(tasks), last = team.share_end(tasks);
            for (Index task = first; task < last; ++task) {
                Index chunk = 0;
                const Region region = region_of(task, chunk);
                reduce(region, slot(chunk) + region.channels.begin * columns_, pitch);
            }
            team.barrier();
            const ChannelRange mine{team.share_begin(problem_.channels),
                                    team.share_end(problem_.channels)};
            const Index begin = mine.begin * columns_;
            for (Index k = 1; k < chunks; ++k) {
                merge(slot(0) + begin, pitch, slot(k) + begin, pitch, mine.size() * columns_);
            }
            finish(mine, slot(0) + begin, pitch);
            team.barrier();
            for (Index task = last; task-- > first;) {
                Index chunk = 0;
                write(region_of(task, chunk));
            }
        });
    }

    const Problem& problem_;
    const StatisticsIn& of_;
    const Param<T>* weight_;
    const TwiceArrays<T>& arrays_;
    const Fused fused_;
    const Setting<T> setting_;
    const DoubleBackwardKernels<T>& kernels_;
    const int layout_;
    const Index columns_;
    const ColumnRows rows_;
    const Activated activated_;
    std::unique_ptr<RowsOfZ<T>> of_z_;
    std::optional<ColumnRows> exact_;
    PoolArray<bool> is_extreme_;
    DoubleBackward<T> pass_;
    int sums_ = 0;
};

}  // namespace

template <class T>
void double_backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                     const StatisticsIn& of, const Param<T>* weight, bool centred,
                     const TwiceArrays<T>& arrays, const Applied<T>* applied) {
    if (problem.elements() == 0) {
        for (double* const sums : {arrays.of_weight, arrays.of_bias}) {
            if (sums != nullptr) std::fill_n(sums, problem.channels, 0.0);
        }
        return;
    }
    DoubleBackwardPass<T>(problem, dy, x, of, weight, centred, arrays, applied).run();
}

#define BNEXT_DOUBLE_BACKWARD(T)                                                              \
    template void double_backward(const Problem&, const View<const T>&, const View<const T>&, \
                                  const StatisticsIn&, const Param<T>*, bool,                 \
                                  const TwiceArrays<T>&, const Applied<T>*);
BNEXT_DOUBLE_BACKWARD(float)
BNEXT_DOUBLE_BACKWARD(double)
BNEXT_DOUBLE_BACKWARD(float16)
BNEXT_DOUBLE_BACKWARD(bfloat16)
#undef BNEXT_DOUBLE_BACKWARD

}  // namespace bnext::cpu

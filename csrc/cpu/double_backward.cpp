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

// Rows of doubles: numbers of all columns, or of all channels.
class NumberRows {
public:
    NumberRows(int rows, Index columns)
        : columns_(columns), values_(static_cast<std::size_t>(rows * columns), 0.0) {}
    [[nodiscard]] double* row(int r) const { return values_.data() + r * columns_; }

private:
    Index columns_;
    PoolArray<double> values_;
};

// The numbers of channels, of which coefficients and gradients by parameters follow.
template <class T>
class TwiceChannels {
public:
    TwiceChannels(const TwiceOf<T>& of, const TwiceArrays<T>& arrays)
        : of_(of), arrays_(arrays), pilots_(2, of.problem.channels) {}

    [[nodiscard]] double* pilots_of_u() const { return pilots_.row(0); }
    [[nodiscard]] double* pilots_of_g() const { return pilots_.row(1); }
    // Rounded to the type of the data, so that what is about them is exact.
    void set_pilots(const double* pilots) const {
        const auto round = [](double each) {
            return static_cast<double>(static_cast<Compute<T>>(each));
        };
        std::transform(pilots, pilots + 2 * of_.problem.channels, pilots_.row(0), round);
    }
    [[nodiscard]] double scale(Index c) const {
        return value_or(of_.weight, c, 1.0) * of_.statistics.rstd()[c];
    }
    [[nodiscard]] TwiceChannel channel(Index c) const {
        return {of_.centred,
                of_.is_curved(),
                of_.statistics.rstd()[c],
                scale(c),
                kHasMeanLow<T> ? of_.statistics.mean_low()[c] : 0.0,
                arrays_.ddweight != nullptr ? arrays_.ddweight[c] : 0.0,
                arrays_.ddbias != nullptr ? arrays_.ddbias[c] : 0.0,
                pilots_of_u()[c],
                pilots_of_g()[c]};
    }
    void give(Index c, const TwiceParameters& gradients) const {
        if (arrays_.of_weight != nullptr) arrays_.of_weight[c] = gradients.of_weight;
        if (arrays_.of_bias != nullptr) arrays_.of_bias[c] = gradients.of_bias;
    }
    // From the sums of a whole batch.
    TwiceMeans whole(Index c, const TwiceSums& sums, double n) const {
        const TwiceChannel channel = this->channel(c);
        const TwiceMeans means(channel, sums, n);
        give(c, twice_parameters(channel, sums, means));
        return means;
    }
    // The same, where `mine` is of a part.
    TwiceMeans part(Index c, const TwiceTotal& mine, const TwiceTotal& all) const {
        if (mine.n == all.n) return whole(c, at(all, c), all.n);
        const TwiceChannel channel = this->channel(c);
        const TwiceMeans means(channel, at(all, c), all.n);
        give(c, twice_share(channel, at(mine, c), mine.n, means));
        return means;
    }
    void clear_parameters() const {
        for (Index c = 0; c < of_.problem.channels; ++c) give(c, {0.0, 0.0});
    }

private:
    [[nodiscard]] TwiceSums at(const TwiceTotal& total, Index c) const {
        TwiceSums sums;
        for_each_twice_sum(sums, of_.is_curved(), [&](int row, double& number) {
            number = total.sums[row * of_.problem.channels + c];
        });
        return sums;
    }

    const TwiceOf<T>& of_;
    const TwiceArrays<T>& arrays_;
    const NumberRows pilots_;
};

template <class T>
class DoubleBackwardPass {
public:
    DoubleBackwardPass(const TwiceOf<T>& of, const TwiceArrays<T>& arrays)
        : problem_(of.problem),
          of_(of.statistics),
          arrays_(arrays),
          fused_(of.fused()),
          channels_(of, arrays),
          setting_(prepare<T>(problem_, Work{operands(), 2}, Pass::backward,
                              fused_.changes_backward() ? Epilogue::activated : Epilogue::none)),
          kernels_(double_backward_table_of(setting_.table).template kernels<T>()),
          layout_(static_cast<int>(setting_.plan.tiling.walk())),
          columns_(setting_.plan.tiling.columns()),
          rows_(kTwiceRows, problem_.channels * columns_),
          activated_{fused_, of.applied != nullptr ? of.applied->flags : FlagBits{}} {
        pass_ = {of.x,
                 of.dy,
                 arrays.ddx,
                 arrays.ddresidual,
                 fused_.reads_residual() ? of.applied->residual : View<const T>{nullptr, {}},
                 arrays.of_dy,
                 arrays.of_x,
                 fused_.is_piecewise_linear() ? View<T>{nullptr, {}} : arrays.of_residual,
                 activated_,
                 channels_.pilots_of_u(),
                 channels_.pilots_of_g(),
                 {},
                 nullptr,
                 {},
                 {}};
        for (int r = 0; r < kTwiceRows; ++r) pass_.row[r] = rows_.row(r);
        for (Index c = 0; c < problem_.channels; ++c) {
            set(TwiceRow::mean, c, of_.mean()[c]);
            set(TwiceRow::scale, c, channels_.scale(c));
            if (of.centred) take_pilots(c);
        }
        if (fused_.changes_backward() && !activated_.flags.are_kept()) {
            take_z(of.applied->of_forward);
        }
        sums_ = pass_.is_curved() ? kTwiceSums : kTwiceSumsOfLines;
    }

    void run() const { go(true, true); }
    void pilots(double* to) const {
        std::copy_n(channels_.pilots_of_u(), 2 * problem_.channels, to);
    }
    void reduce_about(const double* pilots, double* sums) {
        channels_.set_pilots(pilots);
        kept_ = sums;
        go(true, false);
    }
    void apply_by(const double* pilots, const TwiceTotal& mine, const TwiceTotal& all) const {
        channels_.set_pilots(pilots);
        for (Index c = 0; c < problem_.channels; ++c) {
            set_rows(c, channels_.part(c, mine, all), mine.n != all.n);
        }
        go(false, true);
    }

private:
    [[nodiscard]] int operands() const {
        const auto there = [](const auto& view) { return view.data != nullptr ? 1 : 0; };
        return 2 + there(arrays_.ddx) + there(arrays_.ddresidual) + there(arrays_.of_dy) +
               there(arrays_.of_x) + there(arrays_.of_residual) + int{fused_.reads_residual()};
    }
    void set(TwiceRow which, Index c, double value) const {
        std::fill_n(rows_.row(static_cast<int>(which)) + c * columns_, columns_, value);
    }

    // Values of the data. After an activation g varies with act', so that a pilot would not help;
    // and sums of zeros are 0.
    void take_pilots(Index c) const {
        const Tiling& tiling = setting_.plan.tiling;
        if (pass_.ddx.data != nullptr) channels_.pilots_of_u()[c] = origin_of(pass_.ddx, tiling, c);
        if (!pass_.has_activation()) channels_.pilots_of_g()[c] = origin_of(pass_.dy, tiling, c);
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

    // The sums are final: they are kept, or coefficients and gradients by parameters follow.
    void finish(const ChannelRange& channels, const double* sums, Index pitch) const {
        const auto n = static_cast<double>(problem_.count());
        for (Index c = channels.begin; c < channels.end; ++c) {
            TwiceSums of_channel;
            for (int s = 0; s < sums_; ++s) {
                const double* const from = sums + s * pitch + (c - channels.begin) * columns_;
                for (Index i = 0; i < columns_; ++i) of_channel.sum[s] += from[i];
            }
            channels_.channel(c).take_in(of_channel, n);
            if (kept_ == nullptr) {
                set_rows(c, channels_.whole(c, of_channel, n), false);
                continue;
            }
            for_each_twice_sum(of_channel, pass_.is_curved(), [&](int row, double number) {
                kept_[row * problem_.channels + c] = number;
            });
        }
    }
    void set_rows(Index c, const TwiceMeans& means, bool is_part) const {
        double row[kTwiceRows];
        set_twice_rows(channels_.channel(c), means, is_part, arrays_.ddx.data != nullptr,
                       of_.mean()[c], row);
        for (int r = 0; r < kTwiceRows; ++r) set(static_cast<TwiceRow>(r), c, row[r]);
    }

    [[nodiscard]] bool writes() const {
        return pass_.of_dy.data != nullptr || pass_.of_x.data != nullptr ||
               pass_.of_residual.data != nullptr;
    }
    void write(const Region& region) const {
        if (writes()) kernels_.write[layout_](pass_, region, setting_.stores);
    }

    // Either phase, or both.
    void go(bool reduces, bool writes) const {
        if (setting_.plan.schedule == Schedule::split) {
            split(reduces, writes);
        } else {
            by_channels(reduces, writes);
        }
    }

    // A task is both phases of a block of channels (two_phase.hpp).
    void by_channels(bool reduces, bool writes) const {
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
                if (reduces) {
                    reduce({&plan.tiling, plan.tiling.chunk(0), channels}, sums, width);
                    for (Index k = 1; k < plan.tiling.chunks(); ++k) {
                        reduce({&plan.tiling, plan.tiling.chunk(k), channels}, more, width);
                        merge(sums, width, more, width, channels.size() * columns_);
                    }
                    finish(channels, sums, width);
                }
                if (writes) write({&plan.tiling, plan.tiling.all(), channels});
            }
        });
    }

    // Members share the chunks of all channels, whose sums have slots.
    void split(bool reduces, bool writes) const {
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
            if (reduces) {
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
                if (writes) team.barrier();
            }
            if (!writes) return;
            for (Index task = last; task-- > first;) {
                Index chunk = 0;
                write(region_of(task, chunk));
            }
        });
    }

    const Problem& problem_;
    const StatisticsIn of_;
    const TwiceArrays<T>& arrays_;
    const Fused fused_;
    const TwiceChannels<T> channels_;
    const Setting<T> setting_;
    const DoubleBackwardKernels<T>& kernels_;
    const int layout_;
    const Index columns_;
    const NumberRows rows_;
    const Activated activated_;
    std::unique_ptr<RowsOfZ<T>> of_z_;
    std::optional<NumberRows> exact_;
    PoolArray<bool> is_extreme_;
    DoubleBackward<T> pass_;
    int sums_ = 0;
    double* kept_ = nullptr;  // where the sums go, in a group
};

}  // namespace

template <class T>
void double_backward(const TwiceOf<T>& of, const TwiceArrays<T>& arrays) {
    if (of.problem.elements() == 0) return TwiceChannels<T>(of, arrays).clear_parameters();
    DoubleBackwardPass<T>(of, arrays).run();
}

template <class T>
void double_backward_pilots(const TwiceOf<T>& of, const TwiceArrays<T>& arrays, double* pilots) {
    if (of.problem.elements() == 0) return;
    DoubleBackwardPass<T>(of, arrays).pilots(pilots);
}

template <class T>
void double_backward_reduce(const TwiceOf<T>& of, const TwiceArrays<T>& arrays,
                            const double* pilots, double* sums) {
    if (of.problem.elements() == 0) return;
    DoubleBackwardPass<T>(of, arrays).reduce_about(pilots, sums);
}

template <class T>
void double_backward_apply(const TwiceOf<T>& of, const TwiceArrays<T>& arrays, const double* pilots,
                           const TwiceTotal& mine, const TwiceTotal& all) {
    if (of.problem.elements() != 0)
        return DoubleBackwardPass<T>(of, arrays).apply_by(pilots, mine, all);
    const TwiceChannels<T> channels(of, arrays);
    if (all.n == 0) return channels.clear_parameters();
    channels.set_pilots(pilots);
    for (Index c = 0; c < of.problem.channels; ++c) channels.part(c, mine, all);
}

#define BNEXT_DOUBLE_BACKWARD(T)                                                                  \
    template void double_backward(const TwiceOf<T>&, const TwiceArrays<T>&);                      \
    template void double_backward_pilots(const TwiceOf<T>&, const TwiceArrays<T>&, double*);      \
    template void double_backward_reduce(const TwiceOf<T>&, const TwiceArrays<T>&, const double*, \
                                         double*);                                                \
    template void double_backward_apply(const TwiceOf<T>&, const TwiceArrays<T>&, const double*,  \
                                        const TwiceTotal&, const TwiceTotal&);
BNEXT_DOUBLE_BACKWARD(float)
BNEXT_DOUBLE_BACKWARD(double)
BNEXT_DOUBLE_BACKWARD(float16)
BNEXT_DOUBLE_BACKWARD(bfloat16)
#undef BNEXT_DOUBLE_BACKWARD

}  // namespace bnext::cpu

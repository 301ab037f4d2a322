// Every handler is a loop over slices; a slice is checked and run as a call of any other library.
// The thread of XLA's that calls a handler is a member of the team of threads, and the other
// members are OpenMP's: no task waits in a pool of XLA's, whose threads may all be waiting here.
#include "xla/handlers.hpp"

#include <array>

#include "core/moments.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "xla/operands.hpp"
#include "xla/running.hpp"

namespace bnext::foreign {
namespace {

// What programs see of statistics, in the dtype of parameters: the mean, m2, and the mean's low
// part.
template <class P>
void show(const StatisticsIn& rows, Index channels, P* values) {
    for (Index c = 0; c < channels; ++c) {
        values[c] = static_cast<P>(rows.mean()[c]);
        values[c + channels] = static_cast<P>(rows.m2()[c]);
        const double low = rows.mean()[c] - static_cast<double>(values[c]);
        values[c + 2 * channels] = static_cast<P>(low + rows.mean_low()[c]);
    }
}

template <class T>
void show_gradients(const Operands& of, const double* sum_dy, const double* sum_dy_xmu,
                    const double* rstd) {
    auto* const dweight = of.vector<Param<T>>("dweight", of.channels());
    auto* const dbias = of.vector<Param<T>>("dbias", of.channels());
    const bool empty = of.x().size() == 0;
    for (Index c = 0; c < of.channels(); ++c) {
        dweight[c] = static_cast<Param<T>>(empty ? 0.0 : sum_dy_xmu[c] * rstd[c]);
        dbias[c] = static_cast<Param<T>>(sum_dy[c]);
    }
}

// The sum of the weights of positions, where programs want it: as a number, and in double.
template <class P>
void show_count(const Slice& of, double n) {
    if (!of.has("count")) return;
    *of.vector<P>("count", 1) = static_cast<P>(n);
    *of.doubles("total", 1) = n;
}

// The residual's gradient where no kernel writes one: dy, since no activation followed and every
// position counts.
template <class T>
void show_dresidual(const Operands& of, bool is_written) {
    if (is_written || !of.has("dresidual")) return;
    const Index size = of.x().size();
    std::copy_n(of.vector<T>("dy", size), size, of.vector<T>("dresidual", size));
}

// Sums over a batch, of dy and of dy * (x - mean).
struct Sums {
    explicit Sums(Index channels)
        : values(static_cast<std::size_t>(2 * channels), 0.0), channels_(channels) {}
    [[nodiscard]] double* dy() const { return values.data(); }
    [[nodiscard]] double* dy_xmu() const { return values.data() + channels_; }

    cpu::PoolArray<double> values;

private:
    Index channels_;
};

// f(T) of the dtype of x.
template <class F>
void with_type(const Operands& of, const F& f) {
    with_dtype(of.x().dtype(), [&](auto type) { f.template operator()<decltype(type)>(); });
}

// --- forward
// --------------------------------------------------------------------------------------

void forward(const Operands& of) {
    with_type(of, [&]<class T>() {
        const StatisticsOut rows = of.statistics();
        const auto applied = of.applied<T>();
        const auto weights = of.weights<T>();
        const double n =
            cpu::forward<T>(of.problem(), of.view<const T>("x"), of.view<T>("y"), of.affine<T>(),
                            of.eps(), rows, pointer_to(applied), pointer_to(weights));
        show(rows, of.channels(), of.vector<Param<T>>("values", 3 * of.channels()));
        show_count<Param<T>>(of, n);
    });
}

// A shard's moments: rows of n, mean, mean_low and m2.
constexpr Index kShardRows = 4;

void collect_stats(const Operands& of) {
    const Index channels = of.channels();
    double* const shard = of.doubles("shard", kShardRows * channels);
    with_type(of, [&]<class T>() {
        const cpu::PoolArray<double> values(static_cast<std::size_t>(kStatisticsRows * channels));
        const StatisticsOut rows(values.data(), channels);
        const auto weights = of.weights<T>();
        const double n =
            cpu::collect_stats<T>(of.problem(), of.view<const T>("x"), rows, pointer_to(weights));
        std::fill_n(shard, channels, n);
        std::copy_n(rows.mean(), channels, shard + channels);
        std::copy_n(rows.mean_low(), channels, shard + 2 * channels);
        std::copy_n(rows.m2(), channels, shard + 3 * channels);
    });
}

// The moments of all shards, in the order of ranks, with means relative to the first shard's.
void merge_shards(const Slice& of) {
    const auto shape = of.shape("shards");  // ranks, rows, channels, words
    BNEXT_CHECK(shape.size() == 4 && shape[1] == kShardRows, "shards: expected shape (R, 4, C, 2)");
    const Index ranks = shape[0], channels = shape[2], step = kShardRows * channels;
    const double* const shards = of.doubles("shards", ranks * step);
    const StatisticsOut rows(of.doubles("statistics", kStatisticsRows * channels), channels);
    const bool wide = of.frame().find("values")->buffer.element_type() == ffi::DataType::F64;
    double count = 0;
    for (Index c = 0; c < channels; ++c) {
        Moments all;
        double origin = 0, low = 0;
        for (Index r = 0; r < ranks; ++r) {
            const double* const shard = shards + r * step + c;
            const double n = shard[0], mean = shard[channels], mean_low = shard[2 * channels];
            if (n == 0) continue;
            if (all.count == 0) {
                origin = mean;
                low = mean_low;
            }
            merge(all, {n, (mean - origin) + (mean_low - low), shard[3 * channels]});
        }
        count = all.count;
        const HighLow mean = two_sum(origin, all.mean + low);
        rows.mean()[c] = mean.high;
        rows.mean_low()[c] = wide ? mean.low : 0.0;
        rows.m2()[c] = all.m2;
        cpu::active_table().finish_statistics(1, rows.m2() + c, all.count,
                                              of.frame().get<double>("eps"), rows.var() + c,
                                              rows.rstd() + c);
    }
    const auto show_in = [&]<class P>() {
        show(rows, channels, of.vector<P>("values", 3 * channels));
        show_count<P>(of, count);
    };
    wide ? show_in.operator()<double>() : show_in.operator()<float>();
}

// y from statistics, whose variance is there: of a batch, or given.
template <class T>
void apply_by(const Operands& of, const StatisticsOut& rows) {
    const auto applied = of.applied<T>();
    const auto weights = of.weights<T>();
    cpu::apply_norm<T>(of.problem(), of.view<const T>("x"), of.view<T>("y"), rows, of.eps(),
                       of.affine<T>(), pointer_to(applied), pointer_to(weights));
}

void apply_norm(const Operands& of) {
    const auto size = static_cast<std::size_t>(kStatisticsRows * of.channels());
    const cpu::PoolArray<double> values(size);  // rstd is written again
    std::copy_n(of.statistics().mean(), size, values.data());
    with_type(of, [&]<class T>() { apply_by<T>(of, {values.data(), of.channels()}); });
}

void normalize(const Operands& of) {
    const StatisticsOut rows = of.statistics();
    const Index channels = of.channels();
    std::fill_n(rows.mean(), kStatisticsRows * channels, 0.0);
    with_type(of, [&]<class T>() {
        std::copy_n(of.vector<Param<T>>("mean", channels), channels, rows.mean());
        std::copy_n(of.vector<Param<T>>("var", channels), channels, rows.var());
        apply_by<T>(of, rows);
    });
}

// --- backward
// -------------------------------------------------------------------------------------

void backward(const Operands& of) {
    const StatisticsIn rows = of.statistics();
    const Sums sums(of.channels());
    with_type(of, [&]<class T>() {
        const auto applied = of.applied<T>();
        const auto weights = of.weights<T>(true);
        cpu::backward<T>(of.problem(), of.view<const T>("dy"), of.view<const T>("x"),
                         of.view<T>("dx"), rows, of.affine<T>().weight, sums.dy(), sums.dy_xmu(),
                         pointer_to(applied), pointer_to(weights));
        show_dresidual<T>(of, weights != nullptr || of.fused().changes_backward());
        show_gradients<T>(of, sums.dy(), sums.dy_xmu(), rows.rstd());
    });
}

void backward_reduce(const Operands& of) {
    const StatisticsIn rows = of.statistics();
    double* const sum_dy = of.doubles("sums", 2 * of.channels());
    double* const sum_dy_xmu = sum_dy + of.channels();
    with_type(of, [&]<class T>() {
        const auto applied = of.applied<T>();
        const auto weights = of.weights<T>(true);
        cpu::backward_reduce<T>(of.problem(), of.view<const T>("dy"), of.view<const T>("x"), rows,
                                sum_dy, sum_dy_xmu, pointer_to(applied), pointer_to(weights));
        show_gradients<T>(of, sum_dy, sum_dy_xmu, rows.rstd());
    });
}

// dx from the sums of all shards, added in the order of ranks, over the values of all. The
// gradients of parameters as well, where these are of the whole batch.
void backward_apply(const Operands& of) {
    const StatisticsIn rows = of.statistics();
    const Index channels = of.channels(), ranks = of.shape("sums")[0];
    const double* const of_ranks = of.doubles("sums", ranks * 2 * channels);
    const double* const shards = of.doubles("shards", ranks * kShardRows * channels);
    const Sums sums(channels);
    double n = 0;
    for (Index r = 0; r < ranks && channels > 0; ++r) {
        n += shards[r * kShardRows * channels];
        for (Index k = 0; k < 2 * channels; ++k) {
            sums.values.data()[k] += of_ranks[r * 2 * channels + k];
        }
    }
    if (n == 0) n = 1;  // nothing counts
    with_type(of, [&]<class T>() {
        const auto applied = of.applied<T>();
        const auto weights = of.weights<T>(true);
        cpu::backward_apply<T>(of.problem(), of.view<const T>("dy"), of.view<const T>("x"),
                               of.view<T>("dx"), rows, of.affine<T>().weight, sums.dy(),
                               sums.dy_xmu(), n, pointer_to(applied), pointer_to(weights));
        show_dresidual<T>(of, weights != nullptr || of.fused().changes_backward());
        if (of.has("dweight")) show_gradients<T>(of, sums.dy(), sums.dy_xmu(), rows.rstd());
    });
}

// Of statistics that were given, and are constants.
void backward_given(const Operands& of) {
    const StatisticsIn rows = of.statistics();
    const Index channels = of.channels();
    const Sums sums(channels), none(channels);
    with_type(of, [&]<class T>() {
        const auto applied = of.applied<T>();
        const auto dy = of.view<const T>("dy"), x = of.view<const T>("x");
        const auto dx = of.view<T>("dx");
        const Param<T>* const weight = of.affine<T>().weight;
        const auto weights = of.weights<T>(true);
        cpu::backward_reduce<T>(of.problem(), dy, x, rows, sums.dy(), sums.dy_xmu(),
                                pointer_to(applied), pointer_to(weights));
        const bool writes_dresidual = weights != nullptr && of.has("dresidual");
        if (writes_dresidual || of.fused().changes_backward()) {
            cpu::backward_apply<T>(of.problem(), dy, x, dx, rows, weight, none.dy(), none.dy_xmu(),
                                   1.0, pointer_to(applied), pointer_to(weights));
        } else {  // dy * weight * rstd
            const auto size = static_cast<std::size_t>(kStatisticsRows * channels);
            const cpu::PoolArray<double> values(size, 0.0);
            const StatisticsOut about_zero(values.data(), channels);
            std::copy_n(rows.var(), channels, about_zero.var());
            cpu::apply_norm<T>(of.problem(), dy, dx, about_zero, of.eps(), {weight, nullptr},
                               nullptr, pointer_to(weights));
            show_dresidual<T>(of, false);
        }
        show_gradients<T>(of, sums.dy(), sums.dy_xmu(), rows.rstd());
    });
}

// --- handlers
// -------------------------------------------------------------------------------------

template <Function function, bool batch_statistics, void (*body)(const Operands&)>
ffi::Error call(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                ffi::Dictionary attributes) {
    return run_slices(arguments, results, attributes, [](const Frame& frame, Index slice) {
        body(Operands(function, batch_statistics, frame, slice));
    });
}

ffi::Error call_merge(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                      ffi::Dictionary attributes) {
    return run_slices(arguments, results, attributes,
                      [](const Frame& frame, Index slice) { merge_shards(Slice(frame, slice)); });
}

constexpr auto kForward = &call<Function::forward, true, forward>;
constexpr auto kCollectStats = &call<Function::collect_stats, true, collect_stats>;
// Statistics are bnext's own: what is left to check is what a forward call has.
constexpr auto kApplyNorm = &call<Function::collect_stats, true, apply_norm>;
constexpr auto kNormalize = &call<Function::normalize, false, normalize>;
constexpr auto kBackward = &call<Function::backward, true, backward>;
constexpr auto kBackwardReduce = &call<Function::backward_reduce, true, backward_reduce>;
constexpr auto kBackwardApply = &call<Function::backward, true, backward_apply>;
constexpr auto kBackwardGiven = &call<Function::backward, false, backward_given>;

XLA_FFI_DEFINE_HANDLER(forward_handler, kForward, binding());
XLA_FFI_DEFINE_HANDLER(collect_stats_handler, kCollectStats, binding());
XLA_FFI_DEFINE_HANDLER(merge_shards_handler, &call_merge, binding());
XLA_FFI_DEFINE_HANDLER(apply_norm_handler, kApplyNorm, binding());
XLA_FFI_DEFINE_HANDLER(normalize_handler, kNormalize, binding());
XLA_FFI_DEFINE_HANDLER(backward_handler, kBackward, binding());
XLA_FFI_DEFINE_HANDLER(backward_reduce_handler, kBackwardReduce, binding());
XLA_FFI_DEFINE_HANDLER(backward_apply_handler, kBackwardApply, binding());
XLA_FFI_DEFINE_HANDLER(backward_given_handler, kBackwardGiven, binding());

}  // namespace

std::span<const Target> batch_targets() {
    static const std::array all{
        target("bnext_forward", forward_handler),
        target("bnext_collect_stats", collect_stats_handler),
        target("bnext_merge_shards", merge_shards_handler),
        target("bnext_apply_norm", apply_norm_handler),
        target("bnext_normalize", normalize_handler),
        target("bnext_backward", backward_handler),
        target("bnext_backward_reduce", backward_reduce_handler),
        target("bnext_backward_apply", backward_apply_handler),
        target("bnext_backward_given", backward_given_handler),
    };
    return all;
}

}  // namespace bnext::foreign

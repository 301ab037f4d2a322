#include "cuda/channel_launch.hpp"

#include "core/division.hpp"
#include "cuda/channel_kernel.hpp"
#include "cuda/launch.hpp"

namespace bnext::cuda {
namespace {

constexpr int kThreads = 128;  // of a block

Kernel kernel_of(DType dtype, PerChannel what) {
    return dtype == DType::float64 ? channel_kernel<double>(what) : channel_kernel<float>(what);
}

void run(const Channels& channels, PerChannel what, Arguments& a, runtime::Stream stream) {
    if (channels.count == 0) return;
    Launch launch;
    launch.cut.channels = channels.count;
    launch.cut.threads = kThreads;
    launch.grid = divide_up(channels.count, kThreads);
    a.cut = launch.cut;
    const runtime::CurrentDevice current(channels.device);
    run_named(kernel_of(channels.dtype, what), launch, a, stream, [&] {
        return concat("numbers of channels (kernel ",
                      what == PerChannel::keep_z ? "keep_z" : "show_statistics", ", ",
                      name_of(channels.dtype), "; grid ", launch.grid, ", block ", kThreads, "; ",
                      text_of_device(channels.device), ")");
    });
}

}  // namespace

void show_statistics(const Channels& channels, double* statistics, void* shown,
                     runtime::Stream stream) {
    Arguments a{};
    a.statistics = statistics;
    a.out[0].data = shown;
    run(channels, PerChannel::show_statistics, a, stream);
}

void keep_z(const Channels& channels, double* statistics, const void* weight, const void* bias,
            double* of_z, runtime::Stream stream) {
    Arguments a{};
    a.statistics = statistics;
    a.weight = weight;
    a.bias = bias;
    a.of_z = of_z;
    run(channels, PerChannel::keep_z, a, stream);
}

void prepare(const Channels& channels) {
    const runtime::CurrentDevice current(channels.device);
    for (const PerChannel what : {PerChannel::show_statistics, PerChannel::keep_z}) {
        runtime::prepare(kernel_of(channels.dtype, what));
    }
}

}  // namespace bnext::cuda

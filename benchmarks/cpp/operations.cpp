#include "operations.hpp"

#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <string>

#include "copy.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/parallel.hpp"
#include "cpu/schedule.hpp"
#include "data.hpp"

namespace bnext::benchmarks {
namespace {

template <class T>
struct Operation {
    const char* name;
    int arrays;  // of the problem's size that must be moved: the floor
    void (*run)(Data<T>& d);
};

template <class T, Activation kActivation, bool kResidual>
void forward_with(Data<T>& d) {
    const cpu::Applied<T> applied = d.applied(kActivation, kResidual);
    cpu::forward<T>(d.problem(), d.x(), d.out(), d.affine(), 1e-5, d.statistics(), &applied);
}

template <class T, Activation kActivation, bool kResidual>
void backward_with(Data<T>& d) {
    const cpu::Applied<T> applied = d.applied(kActivation, kResidual);
    cpu::backward<T>(d.problem(), d.dy(), d.x(), d.out(), d.statistics(), d.weight.data(),
                     d.sum_dy.data(), d.sum_dy_xmu.data(), &applied);
}

// The phases alone, and fused; and with what follows (core/activation.hpp). The flags of an
// addition and a ReLU, a bit a value, are not in the floor.
template <class T>
constexpr Operation<T> kOperations[] = {
    {"collect_stats", 1,
     [](Data<T>& d) { cpu::collect_stats<T>(d.problem(), d.x(), d.statistics()); }},
    {"apply_norm", 2,
     [](Data<T>& d) {
         cpu::apply_norm<T>(d.problem(), d.x(), d.out(), d.statistics(), 1e-5, d.affine());
     }},
    {"forward", 2,
     [](Data<T>& d) {
         cpu::forward<T>(d.problem(), d.x(), d.out(), d.affine(), 1e-5, d.statistics());
     }},
    {"backward_reduce", 2,
     [](Data<T>& d) {
         cpu::backward_reduce<T>(d.problem(), d.dy(), d.x(), d.statistics(), d.sum_dy.data(),
                                 d.sum_dy_xmu.data());
     }},
    {"backward_apply", 3,
     [](Data<T>& d) {
         cpu::backward_apply<T>(d.problem(), d.dy(), d.x(), d.out(), d.statistics(),
                                d.weight.data(), d.sum_dy.data(), d.sum_dy_xmu.data(),
                                static_cast<double>(d.problem().count()));
     }},
    {"backward", 3,
     [](Data<T>& d) {
         cpu::backward<T>(d.problem(), d.dy(), d.x(), d.out(), d.statistics(), d.weight.data(),
                          d.sum_dy.data(), d.sum_dy_xmu.data());
     }},
    {"forward_relu", 2, forward_with<T, Activation::relu, false>},
    {"forward_add_relu", 3, forward_with<T, Activation::relu, true>},
    {"forward_silu", 2, forward_with<T, Activation::silu, false>},
    {"backward_relu", 3, backward_with<T, Activation::relu, false>},
    {"backward_add_relu", 4, backward_with<T, Activation::relu, true>},
    {"backward_silu", 3, backward_with<T, Activation::silu, false>},
};

template <class T>
constexpr Operation<T> kCopies[] = {
    {"copy_with_memcpy", 2,
     [](Data<T>& d) {
         copy_with_memcpy(d.out_values.data(), d.x_values.data(), d.problem().bytes(),
                          cpu::num_threads());
     }},
    {"copy_streaming", 2,
     [](Data<T>& d) {
         copy_streaming(d.out_values.data(), d.x_values.data(), d.problem().bytes(),
                        cpu::num_threads());
     }},
};

// The data of the latest shape. Google Benchmark calls a benchmark several times to find its number
// of iterations, and benchmarks of one shape follow each other: drawing anew would take longer than
// they do.
template <class T>
Data<T>& data_of(const Shape& shape, Layout layout) {
    static std::unique_ptr<Data<T>> data;
    static const Shape* last_shape = nullptr;
    static Layout last_layout = Layout::planar;
    if (last_shape != &shape || last_layout != layout) {
        data.reset();
        data = std::make_unique<Data<T>>(shape, layout);
        last_shape = &shape;
        last_layout = layout;
    }
    return *data;
}

template <class T>
void measure(benchmark::State& state, const Operation<T>& operation, Data<T>& data, int threads) {
    using Clock = std::chrono::steady_clock;
    operation.run(data);
    double seconds = 0.0;
    for (auto _ : state) {
        const auto begin = Clock::now();
        operation.run(data);
        const std::chrono::duration<double> took = Clock::now() - begin;
        state.SetIterationTime(took.count());
        seconds += took.count();
    }
    const Index bytes = data.problem().bytes();
    const Index floor = state.iterations() * operation.arrays * bytes;
    state.SetBytesProcessed(floor);
    state.counters["of_copy"] =
        static_cast<double>(floor) / seconds /
        copy_bandwidth(data.out_values.data(), data.x_values.data(), bytes, threads);
}

// Every operation, with the kernels of one table.
template <class T>
void register_all(const Shape& shape, Layout layout, const Runtime& runtime) {
    const std::string where = std::string("/") + name_of(DTypeOf<T>::value) + "/" +
                              name_of(layout) + "/" + shape.name +
                              "/threads:" + std::to_string(runtime.threads);
    const auto add = [&](const std::string& name, const auto& function) {
        benchmark::RegisterBenchmark(name.c_str(), function)
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
    };
    for (const Operation<T>& operation : kOperations<T>) {
        const auto run = [&operation, &shape, layout, runtime](benchmark::State& state) {
            cpu::set_active_table(*runtime.table);
            cpu::set_num_threads(runtime.threads);
            Data<T>& data = data_of<T>(shape, layout);
            measure(state, operation, data, runtime.threads);
            if (shape.layers > 0) state.counters["layers"] = shape.layers;
            state.SetLabel(name_of(cpu::plan_of(data.problem(), operation.arrays).schedule));
        };
        add(operation.name + where + "/isa:" + runtime.table->name, run);
    }
    if (!runtime.with_copies) return;
    for (const Operation<T>& copy : kCopies<T>) {
        add(copy.name + where, [&copy, &shape, layout, runtime](benchmark::State& state) {
            cpu::set_num_threads(runtime.threads);
            measure(state, copy, data_of<T>(shape, layout), runtime.threads);
        });
    }
}

// float32 with every shape, the other dtypes with shapes of all_dtypes.
template <class First, class... Others>
struct Types {
    static void register_all(const Shape& shape, Layout layout, const Runtime& runtime) {
        benchmarks::register_all<First>(shape, layout, runtime);
        if (shape.all_dtypes) {
            (benchmarks::register_all<Others>(shape, layout, runtime), ...);
        }
    }
};

// One word for each element type of core/dtype.hpp.
using Measured = Types<float, double, float16, bfloat16>;

}  // namespace

void register_operations(std::span<const Runtime> runtimes) {
    for (const Shape& shape : kShapes) {
        for (const Layout layout : {Layout::planar, Layout::interleaved}) {
            if (shape.inner == 1 && layout == Layout::planar) continue;
            for (const Runtime& runtime : runtimes) Measured::register_all(shape, layout, runtime);
        }
    }
}

}  // namespace bnext::benchmarks

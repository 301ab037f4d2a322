// The CUDA kernels: their table, by which `_core` calls them, and for tests and measurements plans
// and launches as Python sees them. Nothing here takes long, so the GIL is kept.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/register.hpp"
#include "core/error.hpp"
#include "cuda/cell_launch.hpp"
#include "cuda/coverage.hpp"
#include "cuda/environment.hpp"
#include "cuda/launch.hpp"
#include "cuda/plan_cache.hpp"
#include "cuda/residency.hpp"
#include "cuda/row_launch.hpp"
#include "cuda/twice_launch.hpp"
#include "intake/dlpack.hpp"
#ifdef BNEXT_CUDA_EMULATION
#include "cuda/emulation/launches.hpp"
#endif
#ifdef BNEXT_XLA
#include "xla/handlers.hpp"
#endif

namespace py = pybind11;

namespace bnext::bindings {
namespace {

using cuda::LaunchPlan;
using cuda::Limits;

template <class T, class All>
T named(const std::string& name, const All& all, const char* argument) {
    std::string names;
    for (const T value : all) {
        if (name == name_of(value)) return value;
        names += (names.empty() ? "" : ", ") + std::string(name_of(value));
    }
    value_error(argument, ": expected one of ", names, ", got '", name, "'");
}

template <class All>
std::vector<std::string> names_of(const All& all) {
    std::vector<std::string> names;
    for (const auto each : all) names.emplace_back(name_of(each));
    return names;
}

cuda::Operation operation_named(const std::string& name) {
    return named<cuda::Operation>(name, cuda::kOperations, "operation");
}

constexpr std::array kDTypes{DType::float32, DType::float64, DType::float16, DType::bfloat16};

LaunchPlan plan(const std::string& operation_name, const std::string& dtype_name,
                const std::vector<Index>& shape, const std::vector<std::vector<Index>>& strides,
                const std::vector<std::uint64_t>& addresses, Index channel_axis,
                const Limits& limits, const std::optional<std::string>& path_name, bool activated,
                bool residual) {
    const cuda::Operation operation = operation_named(operation_name);
    const auto dtype = named<DType>(dtype_name, kDTypes, "dtype");
    const cuda::Besides besides{.activated = activated || residual, .residual = residual};
    const std::size_t count = cuda::operands_of(operation, besides);
    BNEXT_CHECK(strides.size() == count, "strides: expected ", count, " arrays, got ",
                strides.size());
    std::optional<cuda::Path> path = cuda::forced_path(operation);
    if (path_name) path = named<cuda::Path>(*path_name, cuda::paths_of(operation), "path");
    const std::vector<AxisStrides> operands(strides.begin(), strides.end());
    const Description description = describe(dtype, shape, channel_axis, operands);
    return cuda::make_launch_plan(operation, description, addresses, limits, path, besides);
}

void launch(const LaunchPlan& plan, int device, std::uintptr_t stream, std::uintptr_t x,
            std::uintptr_t y, std::uintptr_t dy, std::uintptr_t dx, std::uintptr_t weight,
            std::uintptr_t bias, std::uintptr_t mean, std::uintptr_t var,
            std::uintptr_t running_mean, std::uintptr_t running_var, std::uintptr_t statistics,
            std::uintptr_t sums, std::uintptr_t dweight, std::uintptr_t dbias,
            std::uintptr_t workspace, double eps, double momentum, double correction, double count,
            bool wide_statistics) {
    const auto at = [](std::uintptr_t address) { return reinterpret_cast<void*>(address); };
    const auto doubles = [&](std::uintptr_t address) { return static_cast<double*>(at(address)); };
    const cuda::Addresses addresses{at(x),           at(y),       at(dy),
                                    at(dx),          at(weight),  at(bias),
                                    at(mean),        at(var),     at(running_mean),
                                    at(running_var), nullptr,     doubles(statistics),
                                    doubles(sums),   at(dweight), at(dbias),
                                    at(workspace)};
    cuda::launch(plan, addresses, {eps, momentum, correction, count, wide_statistics}, device,
                 at(stream));
}

Limits made_limits(std::pair<int, int> compute_capability, int multiprocessors,
                   Index shared_per_block, Index shared_per_multiprocessor, int cluster,
                   bool cooperative, int reserved, int resident_blocks) {
    return {.major = compute_capability.first,
            .minor = compute_capability.second,
            .multiprocessors = multiprocessors,
            .shared_per_block = shared_per_block,
            .shared_per_multiprocessor = shared_per_multiprocessor,
            .cluster = cluster,
            .cooperative = cooperative,
            .reserved = reserved,
            .resident_blocks = resident_blocks};
}

#ifdef BNEXT_CUDA_EMULATION
constexpr std::int32_t kMemory = intake::dlpack::kCPU;
#else
constexpr std::int32_t kMemory = intake::dlpack::kCUDA;
#endif

// f, whose errors the caller learns of.
template <class Call, class F>
void run_for(const Call* call, F&& f) {
    using cuda::Failure;
    try {
        f();
    } catch (const Error& error) {
        const Failure why = error.kind() == Error::Kind::layout ? Failure::layout
                            : error.kind() == Error::Kind::path ? Failure::path
                                                                : Failure::value;
        call->fail(call->caller, why, error.what());
    } catch (const std::exception& error) {
        call->fail(call->caller, Failure::runtime, error.what());
    }
}

void run(const cuda::KernelCall* call) {
    run_for(call, [&] {
        if (call->groups > 0) return cuda::run_cells(*call);
        const auto plan = cuda::planned(*call);
        cuda::Addresses at = call->at;
        if (plan->workspace_bytes > 0) {
            at.workspace = call->allocate(call->caller, plan->workspace_bytes);
            if (at.workspace == nullptr) return;
        }
        cuda::launch(*plan, at, call->scalars, call->device, call->stream);
    });
}

void run_rows(const cuda::RowCall* call) {
    run_for(call, [&] {
        const cuda::RowPlan plan = cuda::make_row_plan(*call, cuda::kept_limits(call->device));
        void* workspace = nullptr;
        if (plan.workspace_bytes > 0) {
            workspace = call->allocate(call->caller, plan.workspace_bytes);
            if (workspace == nullptr) return;
        }
        cuda::launch_rows(plan, *call, workspace);
    });
}

void run_twice(const cuda::TwiceCall* call) {
    run_for(call, [&] {
        const cuda::TwicePlan plan = cuda::make_twice_plan(*call, cuda::kept_limits(call->device));
        void* workspace = nullptr;
        if (plan.workspace_bytes > 0) {
            workspace = call->allocate(call->caller, plan.workspace_bytes);
            if (workspace == nullptr) return;
        }
        cuda::launch_twice(plan, *call, workspace);
    });
}

// Of arrays that begin `aligned` bytes behind a place for any unit, and whose rows adjoin.
py::dict row_plan(bool backward, bool centered, const std::string& dtype_name, Index rows,
                  Index width, const Limits& limits, Index aligned, bool activated, bool residual,
                  bool wants_parameters) {
    const auto dtype = named<DType>(dtype_name, kDTypes, "dtype");
    cuda::RowCall call;
    call.backward = backward;
    call.centered = centered;
    call.dtype = static_cast<std::int32_t>(dtype);
    call.activation = activated ? 1 : 0;
    call.rows = rows;
    call.width = width;
    constexpr std::uintptr_t kPlace = 4096;  // looked at, and never read
    auto* const place = reinterpret_cast<void*>(kPlace + static_cast<std::uintptr_t>(aligned));
    const cuda::RowsAt array{place, width};
    call.x = call.out = array;
    if (backward) call.dy = array;
    if (residual) call.residual = array;
    if (residual && backward) call.dresidual = array;
    if (backward && wants_parameters) call.dweight = place;
    const cuda::RowPlan plan = cuda::make_row_plan(call, limits);
    py::dict d;
    d["unit"] = plan.unit;
    d["lanes"] = plan.row.lanes;
    d["kept"] = plan.row.kept;
    d["block_rows"] = plan.row.block_rows;
    d["stride"] = plan.row.stride;
    d["grid"] = plan.rows.grid;
    d["block"] = plan.rows.cut.threads;
    d["shared_bytes"] = plan.rows.shared_bytes;
    d["merge_grid"] = plan.merge.grid;
    d["columns_grid"] = plan.columns.grid;
    d["slots"] = plan.row.slots;
    d["workspace_bytes"] = plan.workspace_bytes;
    return d;
}

constexpr cuda::KernelTable kTable{kMemory, &run};
constexpr cuda::RowTable kRowTable{&run_rows};
constexpr cuda::TwiceTable kTwiceTable{&run_twice};

py::dict environment() {
    py::dict d;
    d["synchronous"] = cuda::environment().synchronous;
    d["reserved_multiprocessors"] = cuda::environment().reserved;
    return d;
}

std::vector<std::string> architectures() {
    std::vector<std::string> result;
    std::istringstream words(cuda::runtime::architectures());
    for (std::string word; words >> word;) result.push_back(word);
    return result;
}

py::dict launch_of(const cuda::Launch& launch) {
    py::dict d;
    d["grid"] = launch.grid;
    d["block"] = launch.cut.threads;
    d["cluster"] = launch.cluster;
    d["cooperative"] = launch.cooperative;
    d["shared_bytes"] = launch.shared_bytes;
    d["slabs"] = launch.cut.slabs;
    d["groups"] = launch.cut.groups;
    d["parts"] = launch.cut.parts;
    d["positions"] = launch.cut.positions;
    d["columns"] = launch.cut.columns;
    d["unit"] = launch.cut.unit;
    d["batches"] = launch.cut.batches;
    d["kept"] = launch.kept;
    return d;
}

py::object foreign_targets() {
#ifdef BNEXT_XLA
    py::dict found;
    for (const foreign::Target& target : foreign::gpu_targets()) {
        py::dict stages;
        stages["execute"] = py::capsule(target.handler, "xla._CUSTOM_CALL_TARGET");
        stages["initialize"] = py::capsule(target.initialize, "xla._CUSTOM_CALL_TARGET");
        found[target.name] = stages;
    }
    return found;
#else
    return py::none();
#endif
}

#ifdef BNEXT_CUDA_EMULATION
py::list record(bool wanted) {
    py::list requests;
    for (const auto& [what, stream] : cuda::emulation::record(wanted)) {
        requests.append(py::make_tuple(what, reinterpret_cast<std::uintptr_t>(stream)));
    }
    return requests;
}
#endif

// (Of this module alone: the emulated kernels may be loaded beside the real ones.)
void register_plan(py::module_& m) {
    py::class_<Limits>(m, "Limits", py::module_local(),
                       "What a GPU has, as far as launches depend on it.")
        .def(py::init(&made_limits), py::kw_only(), py::arg("compute_capability"),
             py::arg("multiprocessors"), py::arg("shared_per_block"),
             py::arg("shared_per_multiprocessor"), py::arg("cluster"), py::arg("cooperative"),
             py::arg("reserved") = 0, py::arg("resident_blocks") = cuda::kBlocksPerProcessor)
        .def_property_readonly("compute_capability",
                               [](const Limits& l) { return std::pair(l.major, l.minor); })
        .def_readonly("multiprocessors", &Limits::multiprocessors)
        .def_readonly("shared_per_block", &Limits::shared_per_block)
        .def_readonly("shared_per_multiprocessor", &Limits::shared_per_multiprocessor)
        .def_readonly("cluster", &Limits::cluster)
        .def_readonly("cooperative", &Limits::cooperative)
        .def_readonly("reserved", &Limits::reserved)
        .def_readonly("resident_blocks", &Limits::resident_blocks);
    py::class_<LaunchPlan>(m, "Plan", py::module_local(), "How one call is launched.")
        .def_property_readonly("operation",
                               [](const LaunchPlan& p) { return name_of(p.operation); })
        .def_property_readonly("path", [](const LaunchPlan& p) { return name_of(p.path); })
        .def_property_readonly("layout",
                               [](const LaunchPlan& p) { return name_of(p.problem.layout); })
        .def_property_readonly("unit", [](const LaunchPlan& p) { return p.first.cut.unit; })
        .def_readonly("workspace_bytes", &LaunchPlan::workspace_bytes)
        .def_property_readonly("launches",
                               [](const LaunchPlan& p) {
                                   py::list launches;
                                   launches.append(launch_of(p.first));
                                   if (p.second.grid > 0) launches.append(launch_of(p.second));
                                   return launches;
                               })
        .def(
            "coverage",
            [](const LaunchPlan& p, std::size_t launch, bool downwards) {
                const std::vector<std::uint8_t> times =
                    cuda::coverage(p, launch == 0 ? p.first : p.second, downwards);
                return py::bytes(reinterpret_cast<const char*>(times.data()), times.size());
            },
            py::arg("launch") = 0, py::arg("downwards") = false,
            "How often each element (outer, channel, inner) is read by a phase, as bytes;\n"
            "downwards: from the last batch to the first, as second phases go.");
}

}  // namespace
}  // namespace bnext::bindings

PYBIND11_MODULE(BNEXT_MODULE, m) {
    using namespace bnext;  // NOLINT: of a module's body
    namespace runtime = cuda::runtime;
    m.doc() = "The CUDA kernels of bnext.";
    m.attr("__version__") = BNEXT_VERSION;
    (void)cuda::environment();  // a variable with a wrong value is an ImportError
    bindings::register_errors();
    bindings::register_plan(m);
    m.attr("table") = py::capsule(&bindings::kTable, cuda::KernelTable::kName);
    m.attr("row_table") = py::capsule(&bindings::kRowTable, cuda::RowTable::kName);
    m.attr("twice_table") = py::capsule(&bindings::kTwiceTable, cuda::TwiceTable::kName);
#ifdef BNEXT_CUDA_EMULATION
    m.def("run_kernels", &cuda::emulation::run_kernels, py::arg("wanted"),
          "Whether launches run, for measurements of all that comes before.");
    m.def("record", &bindings::record, py::arg("wanted"),
          "Begin or end a record of what is asked of the runtime; the one before is returned, as\n"
          "pairs of a name and a stream.");
#ifdef BNEXT_XLA
    bindings::register_emulated_programs(m);
#endif
#endif
    m.def("foreign_targets", &bindings::foreign_targets,
          "The handlers for programs of JAX by their names, each as capsules by stages; None in a\n"
          "build without them.");
    m.def("device_count", &runtime::device_count, "GPUs; 0 where there is no driver.");
    m.def("unavailable_reason", &runtime::unavailable_reason, "Why there are none, else ''.");
    m.def("device_name", &runtime::device_name, py::arg("device"));
    m.def("device_problem", &runtime::device_problem, py::arg("device"),
          "Why kernels cannot run on a device, else ''.");
    m.def(
        "device_of",
        [](std::uintptr_t address) {
            return runtime::device_of(reinterpret_cast<const void*>(address));
        },
        py::arg("address"), "The device whose memory that is; -1 for memory of the host.");
    m.def("limits", &cuda::limits_of, py::arg("device"));
    m.def("environment", &bindings::environment, "What environment variables say, as a dict.");
    m.def("architectures", &bindings::architectures, "What there is code for.");
    m.def("operations", [] { return bindings::names_of(cuda::kOperations); });
    m.def(
        "paths",
        [](const std::string& operation) {
            return bindings::names_of(cuda::paths_of(bindings::operation_named(operation)));
        },
        py::arg("operation"), "Best first.");
    m.def("force_path", &cuda::force_path, py::arg("path"),
          "Plan with that path if an operation has it; the one before is returned.");
    m.def("forget_plans", &cuda::forget_plans, "Plan anew, with limits asked for again.");
    m.def(
        "plan_figures",
        [] {
            const cuda::PlanFigures figures = cuda::plan_figures();
            py::dict d;
            d["kept"] = figures.kept;
            d["made"] = figures.made;
            d["most"] = cuda::kMostPlans;
            return d;
        },
        "Plans that calls keep and have made, and the most that are kept.");
    m.def("plan", &bindings::plan, py::arg("operation"), py::arg("dtype"), py::arg("shape"),
          py::arg("strides"), py::arg("addresses"), py::arg("channel_axis"), py::arg("limits"),
          py::arg("path") = py::none(), py::kw_only(), py::arg("activated") = false,
          py::arg("residual") = false);
    m.def("row_plan", &bindings::row_plan, py::arg("backward"), py::arg("centered"),
          py::arg("dtype"), py::arg("rows"), py::arg("width"), py::arg("limits"), py::kw_only(),
          py::arg("aligned") = 0, py::arg("activated") = false, py::arg("residual") = false,
          py::arg("wants_parameters") = true,
          "How a pass over rows that adjoin is launched, as a dict; arrays begin `aligned` bytes\n"
          "behind a place for any unit.");
    m.def("launch", &bindings::launch, py::arg("plan"), py::arg("device"), py::arg("stream"),
          py::kw_only(), py::arg("x") = 0, py::arg("y") = 0, py::arg("dy") = 0, py::arg("dx") = 0,
          py::arg("weight") = 0, py::arg("bias") = 0, py::arg("mean") = 0, py::arg("var") = 0,
          py::arg("running_mean") = 0, py::arg("running_var") = 0, py::arg("statistics") = 0,
          py::arg("sums") = 0, py::arg("dweight") = 0, py::arg("dbias") = 0,
          py::arg("workspace") = 0, py::arg("eps") = 0.0, py::arg("momentum") = 0.0,
          py::arg("correction") = 1.0, py::arg("count") = 0.0, py::arg("wide_statistics") = false);
}

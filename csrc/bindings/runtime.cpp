// Threads, instruction sets, the pool, and the configuration of build and machine.
#include <pybind11/stl.h>

#include <cmath>
#include <string>

#include "bindings/build.hpp"
#include "bindings/register.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/control_group.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/machine.hpp"
#include "cpu/openmp.hpp"
#include "cpu/pool.hpp"
#include "cpu/schedule.hpp"
#include "cpu/team_size.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {

namespace py = pybind11;

namespace {

std::vector<std::string> names(const cpu::Tables& tables) {
    std::vector<std::string> result;
    for (const cpu::KernelTable* table : tables) result.emplace_back(table->name);
    return result;
}

void set_isa(const std::string& name) {
    const cpu::KernelTable* table = cpu::find_available(name);
    if (table == nullptr) {
        std::string known;
        for (const auto& available : names(cpu::available_tables())) {
            known += (known.empty() ? "" : ", ") + available;
        }
        value_error("name: expected one of ", known, ", got '", name, "'");
    }
    cpu::set_active_table(*table);
}

void set_num_threads(py::handle n) {
    const Index value = intake::take_integer(n, "n");
    constexpr int kMost = 65536;
    if (value < 1 || value > kMost) {
        const auto expected = value < 1 ? std::string(">= 1") : concat("from 1 to ", kMost);
        value_error("n: expected an integer ", expected, ", got ", std::string(py::str(n)));
    }
    cpu::set_num_threads(static_cast<int>(value));
}

void force_schedule(const py::object& name) {
    if (name.is_none()) return cpu::force_schedule(nullptr);
    const auto wanted = py::cast<std::string>(name);
    using cpu::Schedule;
    for (const Schedule schedule : {Schedule::serial, Schedule::channels, Schedule::split}) {
        if (wanted == name_of(schedule)) return cpu::force_schedule(&schedule);
    }
    value_error("name: expected serial, channels or split, got '", wanted, "'");
}

py::dict explain(const py::handle x_object, py::handle channel_axis, int operands) {
    intake::Intake call(Function::moments);
    call.lead(Role::x, x_object);
    call.axis(channel_axis);
    check(call.call);
    const ArrayRef& x = call[Role::x];
    py::dict result;
    const std::array strides{x.axis_strides()};
    const Description description = describe(x.dtype(), x.shape(), call.call.axis(), strides);
    result["copied"] = !x.viewable || !description.accepted();
    result["why"] = description.refusal;
    if (!description.accepted()) return result;
    const Problem& problem = description.problem;
    const cpu::Plan plan = cpu::plan_of(problem, operands);
    result["layout"] = name_of(problem.layout);
    result["outer"] = problem.outer;
    result["channels"] = problem.channels;
    result["inner"] = problem.inner;
    result["tiles"] = plan.tiling.tiles();
    result["chunks"] = plan.tiling.chunks();
    result["schedule"] = name_of(plan.schedule);
    result["block"] = plan.block;
    result["streams_output"] = plan.streams_output;
    return result;
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

py::dict build_config() {
    const cpu::Machine machine = cpu::this_machine();
    py::dict config;
    config["compiled_isas"] = names(cpu::compiled_tables());
    config["available_isas"] = names(cpu::available_tables());
    config["active_isa"] = cpu::active_table().name;
    config["vector_bytes"] = cpu::active_table().vector_bytes;
    const char* openmp = cpu::openmp_version();
    config["openmp"] = openmp;  // None for null
    config["openmp_file"] = cpu::openmp_file();
    // For a build without OpenMP, from cmake/compiler.cmake.
    config["openmp_remedy"] = openmp != nullptr ? nullptr : openmp_remedy();
    config["threads"] = machine.threads;
    config["l2_bytes"] = machine.l2_bytes;
    config["l3_bytes"] = machine.l3_bytes;
    config["zen"] = machine.zen;
    config["compiler"] = compiler();
#ifdef NDEBUG
    config["build_type"] = "release";
#else
    config["build_type"] = "debug";
#endif
    return config;
}

py::dict pool_figures() {
    const cpu::PoolFigures pool = cpu::pool_figures();
    py::dict figures;
    figures["limit_bytes"] = pool.limit_bytes;
    figures["cached_bytes"] = pool.cached_bytes;
    figures["in_use_bytes"] = pool.in_use_bytes;
    figures["hits"] = pool.hits;
    figures["misses"] = pool.misses;
    return figures;
}

py::dict team_figures() {
    const cpu::TeamFigures team = cpu::team_figures();
    py::dict figures;
    figures["number"] = team.limit;
    figures["now"] = team.now;
    figures["fixed"] = team.fixed;
    figures["allowed_processors"] = team.allowed;
    figures["quota"] = std::isinf(team.quota) ? py::object(py::none()) : py::float_(team.quota);
    figures["regions"] = team.regions;
    figures["lost_regions"] = team.lost_regions;
    figures["lost_seconds"] = 1e-9 * static_cast<double>(team.lost);
    return figures;
}

py::tuple control_limits(const std::string& groups, const std::string& mounts) {
    const cpu::ControlLimits none;
    const cpu::ControlLimits limits = cpu::control_limits(groups.c_str(), mounts.c_str());
    return py::make_tuple(
        limits.memory_bytes == none.memory_bytes ? py::object(py::none())
                                                 : py::int_(limits.memory_bytes),
        limits.cores == none.cores ? py::object(py::none()) : py::float_(limits.cores),
        limits.throttled_periods);
}

}  // namespace

void register_runtime(py::module_& m) {
    m.attr("__version__") = version();
    m.def("set_num_threads", &set_num_threads, py::arg("n"), "At most this many threads per call.");
    m.def("get_num_threads", &cpu::num_threads, "How many threads a call may use.");
    m.def("fix_team", &cpu::fix_team, py::arg("fixed"),
          "Whether every call gets as many threads as it may have, whatever they wait.");
    m.def("team_figures", &team_figures, "How many threads calls get, and what they waited.");
    m.def("share_openmp", &cpu::share_openmp, py::arg("library"),
          "Runs on the OpenMP runtime of a loaded library; False if it has none.");
    m.def("set_isa", &set_isa, py::arg("name"), "Forces an instruction set, process-wide.");
    m.def("active_isa", [] { return cpu::active_table().name; }, "The set that calls will use.");
    m.def("last_isa", &cpu::last_used, "The set that the latest call used, as its kernels say.");
    m.def("force_schedule", &force_schedule, py::arg("name"),
          "For tests: 'serial', 'channels', 'split', or None to let the plan choose.");
    m.def("explain", &explain, py::arg("x"), py::arg("channel_axis"), py::arg("operands"),
          "How a call on x would be planned.");
    m.def("pool_figures", &pool_figures, "What the pool of blocks for results holds.");
    m.def("pool_set_limit", &cpu::pool_set_limit, py::arg("bytes"),
          "How much the pool may keep for later calls.");
    m.def("pool_empty_cache", &cpu::pool_empty_cache, "Gives back whatever the pool keeps.");
    m.def(
        "control_limits", &control_limits, py::arg("groups"), py::arg("mounts"),
        "For tests: the memory and the cores that control groups leave a process, by files in the "
        "places of /proc/self/cgroup and /proc/self/mountinfo.");
    m.def("build_config", &build_config, "What was compiled, and what the machine offers.");
}

}  // namespace bnext::bindings

#include "cuda/plan_cache.hpp"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "cuda/residency.hpp"

namespace bnext::cuda {
namespace {

// A plan depends on addresses modulo this: it exceeds every unit, in bytes.
constexpr std::uint64_t kAlignment = 256;

// The operands of a call as plans see them.
struct Operands {
    explicit Operands(const KernelCall& call)
        : shape(call.shape, static_cast<std::size_t>(call.rank)),
          count(static_cast<std::size_t>(call.operands)) {
        std::size_t k = 0;
        const std::initializer_list<const void*> all{call.at.x, call.at.dy, call.at.residual,
                                                     call.at.y, call.at.dx, call.at.dresidual};
        for (const void* const address : all) {
            if (address != nullptr) addresses[k++] = reinterpret_cast<std::uint64_t>(address);
        }
        for (k = 0; k < count; ++k) strides[k] = {call.strides[k], shape.size()};
    }

    std::span<const Index> shape;
    std::size_t count;
    std::array<AxisStrides, kMaxOperands> strides;
    std::array<std::uint64_t, kMaxOperands> addresses{};
};

// The bytes of everything that a plan depends on, but for the limits of the device.
std::string key_of(const KernelCall& call, const Operands& operands, const Besides& besides,
                   std::optional<Path> forced) {
    std::string key;
    key.reserve((6 + operands.shape.size() + operands.count * (operands.shape.size() + 1)) *
                sizeof(Index));
    const auto add = [&](Index word) {
        key.append(reinterpret_cast<const char*>(&word), sizeof word);
    };
    add(static_cast<Index>(call.operation));
    add(call.dtype);
    add(call.channel_axis);
    add(call.device);
    add(forced ? static_cast<Index>(*forced) : -1);
    add(Index{besides.activated} + 2 * Index{besides.residual});
    for (const Index extent : operands.shape) add(extent);
    for (std::size_t k = 0; k < operands.count; ++k) {
        for (const Index stride : operands.strides[k]) add(stride);
        add(static_cast<Index>(operands.addresses[k] % kAlignment));
    }
    return key;
}

struct Cache {
    std::mutex mutex;
    std::unordered_map<std::string, std::shared_ptr<const LaunchPlan>> plans;
    std::map<int, Limits> limits;
    std::size_t made = 0;
    std::optional<std::string> forced;
};

// Never destroyed: daemon threads may call until the process ends.
Cache& cache() {
    static auto* const only = new Cache;
    return *only;
}

const Limits& limits_in(Cache& all, int device) {
    const auto found = all.limits.find(device);
    if (found != all.limits.end()) return found->second;
    return all.limits.emplace(device, limits_of(device)).first->second;
}

std::optional<Path> path_named(const std::optional<std::string>& name, Operation operation) {
    if (!name) return {};
    for (const Path path : paths_of(operation)) {
        if (*name == name_of(path)) return path;
    }
    return {};
}

}  // namespace

Limits kept_limits(int device) {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    return limits_in(all, device);
}

std::shared_ptr<const LaunchPlan> planned(const KernelCall& call) {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    const auto forced = path_named(all.forced, call.operation);
    const Operands operands(call);
    const bool residual = call.at.residual != nullptr;
    const Besides besides{.activated = residual || call.scalars.activation != 0,
                          .residual = residual};
    std::string key = key_of(call, operands, besides, forced);
    if (const auto found = all.plans.find(key); found != all.plans.end()) return found->second;

    const Limits& limits = limits_in(all, call.device);
    const Description description =
        describe(static_cast<DType>(call.dtype), operands.shape, call.channel_axis,
                 {operands.strides.data(), operands.count});
    auto plan = std::make_shared<const LaunchPlan>(
        make_launch_plan(call.operation, description, {operands.addresses.data(), operands.count},
                         limits, forced, besides));
    ++all.made;
    if (all.plans.size() >= kMostPlans) all.plans.clear();
    all.plans.emplace(std::move(key), plan);
    return plan;
}

std::shared_ptr<const LaunchPlan> planned_within(const KernelCall& call, Index room) {
    const auto plan = planned(call);
    Index needed = plan->workspace_bytes;
    if (!plan->forced && must_be_resident(plan->first)) {
        const LaunchPlan other = in_two_kernels(*plan);
        if (needed > room && other.workspace_bytes <= room) {
            return std::make_shared<const LaunchPlan>(other);
        }
        needed = std::max(needed, other.workspace_bytes);
    }
    BNEXT_CHECK(needed <= room, "workspace: expected ", needed, " bytes, got ", room);
    return plan;
}

PlanFigures plan_figures() {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    return {all.plans.size(), all.made};
}

void forget_plans() {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    all.plans.clear();
    all.limits.clear();
}

std::optional<std::string> force_path(std::optional<std::string> name) {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    return std::exchange(all.forced, std::move(name));
}

std::optional<Path> forced_path(Operation operation) {
    Cache& all = cache();
    const std::scoped_lock lock(all.mutex);
    return path_named(all.forced, operation);
}

}  // namespace bnext::cuda

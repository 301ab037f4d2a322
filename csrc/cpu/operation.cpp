#include "cpu/operation.hpp"

#include <atomic>

#include "cpu/machine.hpp"
#include "cpu/operations.hpp"

namespace bnext::cpu {
namespace {

constexpr Schedule kSchedules[] = {Schedule::serial, Schedule::channels, Schedule::split};
std::atomic<const Schedule*> forced{nullptr};

}  // namespace

void force_schedule(const Schedule* schedule) {
    const Schedule* kept = nullptr;  // a pointer into the table above, so that it never dangles
    for (const Schedule& known : kSchedules) {
        if (schedule != nullptr && known == *schedule) kept = &known;
    }
    forced.store(kept, std::memory_order_relaxed);
}

Plan plan_for(const Problem& problem, const Work& work, const Machine& machine) {
    return make_plan(problem, work, machine, forced.load(std::memory_order_relaxed));
}

Plan plan_of(const Problem& problem, int operands) {
    return plan_for(problem, {operands, 2}, this_machine());
}

}  // namespace bnext::cpu

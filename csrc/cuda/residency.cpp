#include "cuda/residency.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/environment.hpp"
#include "cuda/runtime.hpp"

namespace bnext::cuda {
namespace {

struct Answer {
    int resident;
    Index refused_from = std::numeric_limits<Index>::max();  // blocks of a grid
};

std::mutex answers_mutex;

// Of such a kernel and blocks of such a shape; `answers_mutex` is held.
Answer& answer(Kernel kernel, const Launch& launch, int device) {
    static std::map<std::tuple<Kernel, int, int, int, Index>, Answer> answers;
    const std::tuple shape(kernel, device, launch.cluster, launch.cut.threads, launch.shared_bytes);
    auto found = answers.find(shape);
    if (found == answers.end()) {
        const Answer asked{runtime::occupancy(kernel, launch, device)};
        found = answers.emplace(shape, asked).first;
    }
    return found->second;
}

}  // namespace

int resident(Kernel kernel, const Launch& launch, int device) {
    const std::scoped_lock lock(answers_mutex);
    const Answer& known = answer(kernel, launch, device);
    return launch.grid < known.refused_from ? known.resident : 0;
}

void remember_refusal(Kernel kernel, const Launch& launch, int device) {
    const std::scoped_lock lock(answers_mutex);
    Answer& known = answer(kernel, launch, device);
    known.refused_from = std::min(known.refused_from, launch.grid);
}

Limits limits_of(int device) {
    Limits limits = runtime::attributes(device);
    limits.reserved = environment().reserved;
    limits.device = device;
    limits.resident = &resident;
    return limits;
}

}  // namespace bnext::cuda

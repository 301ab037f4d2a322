#include "cuda/residency.hpp"

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/environment.hpp"
#include "cuda/runtime.hpp"

namespace bnext::cuda {
namespace {

using Shape = std::tuple<Kernel, int, int, int, Index>;

Shape shape_of(Kernel kernel, const Launch& launch, int device) {
    return {kernel, device, launch.cluster, launch.cut.threads, launch.shared_bytes};
}

std::mutex mutex;
std::map<Shape, int>& known() {
    static std::map<Shape, int> answers;
    return answers;
}

}  // namespace

int resident(Kernel kernel, const Launch& launch, int device) {
    const Shape shape = shape_of(kernel, launch, device);
    const std::scoped_lock lock(mutex);
    const auto found = known().find(shape);
    if (found != known().end()) return found->second;
    return known()[shape] = runtime::occupancy(kernel, launch, device);
}

void remember_refusal(Kernel kernel, const Launch& launch, int device) {
    const std::scoped_lock lock(mutex);
    known()[shape_of(kernel, launch, device)] = 0;
}

Limits limits_of(int device) {
    Limits limits = runtime::attributes(device);
    limits.reserved = environment().reserved;
    limits.device = device;
    limits.resident = &resident;
    return limits;
}

}  // namespace bnext::cuda

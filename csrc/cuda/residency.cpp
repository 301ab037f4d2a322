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

using Shape = std::tuple<Kernel, int, int, int, Index>;

Shape shape_of(Kernel kernel, const Launch& launch, int device) {
    return {kernel, device, launch.cluster, launch.cut.threads, launch.shared_bytes};
}

struct Answer {
    int resident;
    Index refused_from = std::numeric_limits<Index>::max();  // blocks of a grid
};

class Answers {
public:
    int resident(Kernel kernel, const Launch& launch, int device) {
        const std::scoped_lock lock(mutex_);
        const Answer& answer = of(kernel, launch, device);
        return launch.grid < answer.refused_from ? answer.resident : 0;
    }
    void refuse(Kernel kernel, const Launch& launch, int device) {
        const std::scoped_lock lock(mutex_);
        Answer& answer = of(kernel, launch, device);
        answer.refused_from = std::min(answer.refused_from, launch.grid);
    }

private:
    Answer& of(Kernel kernel, const Launch& launch, int device) {
        const Shape shape = shape_of(kernel, launch, device);
        auto found = answers_.find(shape);
        if (found == answers_.end()) {
            const Answer asked{runtime::occupancy(kernel, launch, device)};
            found = answers_.emplace(shape, asked).first;
        }
        return found->second;
    }

    std::mutex mutex_;
    std::map<Shape, Answer> answers_;
};
Answers& answers() {
    static Answers of_process;
    return of_process;
}

}  // namespace

int resident(Kernel kernel, const Launch& launch, int device) {
    return answers().resident(kernel, launch, device);
}

void remember_refusal(Kernel kernel, const Launch& launch, int device) {
    answers().refuse(kernel, launch, device);
}

Limits limits_of(int device) {
    Limits limits = runtime::attributes(device);
    limits.reserved = environment().reserved;
    limits.device = device;
    limits.resident = &resident;
    return limits;
}

}  // namespace bnext::cuda

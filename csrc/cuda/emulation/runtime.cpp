// The runtime of launches on the CPU: device memory is ordinary memory, and a stream is done with
// what it is given at once.
#include "cuda/runtime.hpp"

#include <cstring>

#include "cuda/emulation/launches.hpp"

namespace bnext::cuda::runtime {

int device_count() { return 2; }
std::string unavailable_reason() { return ""; }
std::string device_name(int device) {
    return device == 0 ? "emulation of a small GPU" : "emulation of a large GPU";
}
std::string device_problem(int) { return ""; }
int device_of(const void*) { return 0; }
std::string architectures() { return "emulation"; }

// Device 0 is small, so that small problems exceed it; device 1 so large that none does.
Limits limits(int device) {
    const Index shared = device == 0 ? 24 * 1024 : 8 * 1024 * 1024;
    return {9, 0, 3, shared, 2 * shared + 2 * 1024, 8, true};
}

CurrentDevice::CurrentDevice(int) {}
CurrentDevice::~CurrentDevice() = default;

void zero(void* memory, Index bytes, Stream) {
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
}

void run(Kernel kernel, const Launch& launch, const Arguments& arguments, Stream) {
    emulation::run(kernel, arguments,
                   {launch.grid, launch.cut.threads, launch.cluster,
                    static_cast<std::size_t>(launch.shared_bytes), launch.cooperative});
}

}  // namespace bnext::cuda::runtime

// What the host asks of the CUDA runtime, and nothing else does: devices.cpp, or for tests on a CPU
// emulation/runtime.cpp. Errors are std::runtime_error.
#pragma once

#include <string>

#include "cuda/plan.hpp"

namespace bnext::cuda::runtime {

using Stream = void*;  // a cudaStream_t

int device_count();                // 0 where there is no driver
std::string unavailable_reason();  // empty where there is a device
std::string device_name(int device);
std::string device_problem(int device);  // why its kernels cannot run; empty if they can
int device_of(const void* address);      // -1 for memory of the host
Limits limits(int device);
std::string architectures();  // those that the module has code for, separated by spaces

// Makes a device the current one, and the one before again at the end.
class CurrentDevice {
public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    [[maybe_unused]] int before_ = -1;  // the emulation has one device, and nothing to restore
};

// Both on the current device, and both only enqueued.
void zero(void* memory, Index bytes, Stream stream);
void run(Kernel kernel, const Launch& launch, const Arguments& arguments, Stream stream);

}  // namespace bnext::cuda::runtime

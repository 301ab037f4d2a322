// What the host asks of the CUDA runtime, and nothing else does: devices.cpp, or for tests on a CPU
// emulation/runtime.cpp. Errors are runtime::Error.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/plan.hpp"

namespace bnext::cuda::runtime {

using Stream = void*;  // a cudaStream_t

enum class Fault {
    other,
    refused,  // a cooperative grid or a cluster does not fit the device: nothing was enqueued
    failed,   // a kernel that was enqueued before has failed
    ended,    // the same, by itself: device::wait_for ends so
};
class Error : public std::runtime_error {
public:
    Error(Fault kind, const std::string& text) : std::runtime_error(text), fault(kind) {}
    Fault fault;
};

int device_count();                // 0 where there is no driver
std::string unavailable_reason();  // empty where there is a device
std::string device_name(int device);
std::string device_problem(int device);  // why its kernels cannot run; empty if they can
int device_of(const void* address);      // -1 for memory of the host
Limits attributes(int device);           // limits without what environment and residency add
// Blocks of a launch that a multiprocessor runs at the same time; of clusters, their number on the
// device.
int occupancy(Kernel kernel, const Launch& launch, int device);
std::string architectures();  // those that the module has code for, separated by spaces

// Makes a device the current one, and the one before again at the end.
class CurrentDevice {
public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int before_ = -1;
};

// On the current device, before a kernel's first launch.
void prepare(Kernel kernel);
// On the current device, and only enqueued.
void* allocate(Index bytes, Stream stream);
void release(void* memory, Stream stream) noexcept;
void zero(void* memory, Index bytes, Stream stream);
void run(Kernel kernel, const Launch& launch, const Arguments& arguments, Stream stream);
// Waits for the stream, unless a graph is captured from it.
void synchronize(Stream stream);

}  // namespace bnext::cuda::runtime

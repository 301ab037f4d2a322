// Runs a launch on the CPU: its threads are fibers of one system thread.
#pragma once

#include <vector>

#include "cuda/plan.hpp"

namespace bnext::cuda::emulation {

// Throws std::runtime_error where all threads wait in vain, or a thread does something forbidden.
void run(Kernel kernel, const Arguments& arguments, const Launch& launch);

// Whether launches run their kernels; without, the code before a launch can be measured.
void run_kernels(bool wanted);

// What the host has asked of the runtime, and on which stream (null where it needs none).
struct Request {
    const char* what;
    void* stream;
};
// Begins a record of requests, or ends it; returns the record that was being made.
std::vector<Request> record(bool wanted);

}  // namespace bnext::cuda::emulation

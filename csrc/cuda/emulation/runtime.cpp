// The runtime of launches on the CPU: device memory is ordinary memory, and a stream finishes its
// work at once. The devices differ in their room and in their faults.
#include "cuda/runtime.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "cuda/emulation/launches.hpp"

namespace bnext::cuda::runtime {
namespace {

struct Device {
    const char* name;
    Index shared;          // memory of a block
    int resident;          // blocks of a multiprocessor, at most
    int clusters;          // of the device
    bool refuses = false;  // cooperative launches and clusters, in spite of its occupancy
    bool fails = false;    // every kernel, after its launch
};
// Most devices are small, so that small problems exceed them; device 1 is large.
constexpr Device kDevices[] = {
    {"emulation of a small GPU", 24 * 1024, kBlocksPerProcessor, 8},
    {"emulation of a large GPU", 8 * 1024 * 1024, kBlocksPerProcessor, 8},
    {"emulation of a GPU with one block a multiprocessor", 24 * 1024, 1, 0},
    {"emulation of a GPU with no resident blocks", 24 * 1024, 0, 0},
    {"emulation of a GPU that refuses launches", 24 * 1024, kBlocksPerProcessor, 8, true},
    {"emulation of a GPU that fails", 24 * 1024, kBlocksPerProcessor, 8, false, true},
};

int current_device = 0;
// Programs of JAX launch from several threads; fibers and devices are for one of them at a time.
std::recursive_mutex one_at_a_time;
bool recording = false;
std::vector<emulation::Request> requests;

void note(const char* what, Stream stream = nullptr) {
    if (recording) requests.push_back({what, stream});
}

bool failed = false;  // a kernel has failed, and no call has reported it

Index shared_of_multiprocessor(const Device& device) { return 2 * device.shared + 2 * 1024; }

void tell_failure(const char* what) {
    if (!failed) return;
    failed = false;
    throw Error(Fault::ended, concat("emulated CUDA: ", what, ": a kernel has failed"));
}

}  // namespace

int device_count() { return static_cast<int>(std::size(kDevices)); }
std::string unavailable_reason() { return ""; }
std::string device_name(int device) { return kDevices[device].name; }
std::string device_problem(int) { return ""; }
int device_of(const void*) { return 0; }
std::string architectures() { return "emulation"; }

Limits attributes(int device) {
    const Device& there = kDevices[device];
    Limits limits;
    limits.major = 9;
    limits.multiprocessors = 3;
    limits.shared_per_block = there.shared;
    limits.shared_per_multiprocessor = shared_of_multiprocessor(there);
    limits.cluster = 16;
    limits.cooperative = true;
    return limits;
}

int occupancy(Kernel, const Launch& launch, int device) {
    const Device& there = kDevices[device];
    if (launch.cluster > 1) return there.clusters;
    const Index fit = shared_of_multiprocessor(there) / (launch.shared_bytes + 1024);
    return static_cast<int>(std::min<Index>(fit, there.resident));
}

CurrentDevice::CurrentDevice(int device) {
    one_at_a_time.lock();
    before_ = std::exchange(current_device, device);
}
CurrentDevice::~CurrentDevice() {
    current_device = before_;
    one_at_a_time.unlock();
}

namespace {

std::set<Kernel> prepared;

// What a device would refuse, whatever the kernel does.
const char* problem_of(Kernel kernel, const Launch& launch) {
    constexpr Index kMostBlocks = 0x7fffffff, kSharedUnprepared = 48 * 1024;
    const int threads = launch.cut.threads;
    if (launch.grid < 1 || launch.grid > kMostBlocks) return "the grid has no or too many blocks";
    if (threads < kWarp || threads > 1024 || threads % kWarp != 0) return "no such block";
    if (launch.shared_bytes > kDevices[current_device].shared) return "too much shared memory";
    if (launch.shared_bytes > kSharedUnprepared && !prepared.contains(kernel)) {
        return "the kernel is not prepared for so much shared memory";
    }
    return launch.grid % launch.cluster != 0 ? "a cluster is not whole" : nullptr;
}

}  // namespace

void prepare(Kernel kernel) {
    note("prepare");
    const std::scoped_lock lock(one_at_a_time);
    prepared.insert(kernel);
}

void* allocate(Index bytes, Stream stream) {
    note("allocate", stream);
    return ::operator new(static_cast<std::size_t>(bytes));
}
void release(void* memory, Stream) noexcept { ::operator delete(memory); }

void zero(void* memory, Index bytes, Stream stream) {
    note("zero", stream);
    tell_failure("zero");
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
}

void run(Kernel kernel, const Launch& launch, const Arguments& arguments, Stream stream) {
    note("run", stream);
    tell_failure("run");
    if (const char* const problem = problem_of(kernel, launch)) {
        throw Error(Fault::other, concat("emulated CUDA: run: ", problem));
    }
    if (kDevices[current_device].refuses && must_be_resident(launch)) {
        throw Error(Fault::refused, "emulated CUDA: run: the launch is too large");
    }
    if (kDevices[current_device].fails) {
        failed = true;
        return;
    }
    try {
        emulation::run(kernel, arguments, launch);
    } catch (const std::runtime_error& error) {
        throw Error(Fault::other, error.what());
    }
}

void synchronize(Stream stream) {
    note("synchronize", stream);
    tell_failure("synchronize");
}

}  // namespace bnext::cuda::runtime

namespace bnext::cuda::emulation {

std::vector<Request> record(bool wanted) {
    runtime::recording = wanted;
    return std::exchange(runtime::requests, {});
}

}  // namespace bnext::cuda::emulation

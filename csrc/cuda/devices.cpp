#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "cuda/instances.hpp"
#include "cuda/runtime.hpp"
#include "cuda/tuning.hpp"

#define BNEXT_TEXT_OF(...) #__VA_ARGS__
#define BNEXT_TEXT(...) BNEXT_TEXT_OF(__VA_ARGS__)

namespace bnext::cuda::runtime {
namespace {

// Whether a status reports the failure of a kernel enqueued before. (A trap is a launch failure.)
Fault fault_of(cudaError_t status) {
    switch (status) {
        case cudaErrorLaunchFailure: return Fault::ended;
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorECCUncorrectable: return Fault::failed;
        default: return Fault::other;
    }
}

// Clears the error, so that no later call of CUDA in this process reports it.
[[noreturn]] void fail(cudaError_t status, const char* what, Fault fault) {
    (void)cudaGetLastError();
    throw Error(fault, concat("CUDA: ", what, ": ", cudaGetErrorString(status), " (",
                              cudaGetErrorName(status), ")"));
}
void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) fail(status, what, fault_of(status));
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

Kernel any_kernel() { return fused_forward<float>(Layout::planar, 1); }

}  // namespace

int device_count() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    return status == cudaSuccess ? count : 0;
}

std::string unavailable_reason() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    if (status != cudaSuccess) return cudaGetErrorString(status);
    return count == 0 ? "no CUDA device" : "";
}

std::string device_name(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    return properties.name;
}

std::string device_problem(int device) {
    const CurrentDevice current(device);
    cudaFuncAttributes attributes{};
    const cudaError_t status =
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(any_kernel()));
    if (status == cudaSuccess) return "";
    (void)cudaGetLastError();
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    return concat(device_name(device), " has compute capability ", major, ".", minor,
                  ", and this build has code for ", architectures(), ": ",
                  cudaGetErrorString(status));
}

int device_of(const void* address) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
    const bool there =
        attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return there ? attributes.device : -1;
}

Limits attributes(int device) {
    Limits limits;
    limits.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    limits.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    limits.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    limits.shared_per_multiprocessor =
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    limits.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
    // Clusters of up to 8 blocks are portable; chips of data centres have 16 (`resident` tells for
    // each launch). Code compiled for less than 9.0 has no clusters on any device.
    const CurrentDevice current(device);
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(any_kernel())),
          "cudaFuncGetAttributes");
    const bool clusters = limits.major >= 9 && attributes.ptxVersion >= 90 &&
                          attribute(cudaDevAttrClusterLaunch, device) != 0;
    const bool large = limits.major == 9 || limits.major == 10;
    limits.cluster = !clusters ? 1 : (large ? tuning::kLargeCluster : tuning::kPortableCluster);
    return limits;
}

std::string architectures() {
    // The compiler's own list, such as 800,900,1000,1200.
    std::string text = BNEXT_TEXT(BNEXT_CUDA_ARCHITECTURES);
    std::ranges::replace(text, ',', ' ');
    return text;
}

CurrentDevice::CurrentDevice(int device) {
    int current = -1;
    check(cudaGetDevice(&current), "cudaGetDevice");
    if (current == device) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    before_ = current;
}
CurrentDevice::~CurrentDevice() {
    if (before_ >= 0) (void)cudaSetDevice(before_);
}

void zero(void* memory, Index bytes, Stream stream) {
    check(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes),
                          static_cast<cudaStream_t>(stream)),
          "cudaMemsetAsync");
}

void* allocate(Index bytes, Stream stream) {
    void* memory = nullptr;
    check(cudaMallocAsync(&memory, static_cast<std::size_t>(bytes),
                          static_cast<cudaStream_t>(stream)),
          "cudaMallocAsync");
    return memory;
}
void release(void* memory, Stream stream) noexcept {
    (void)cudaFreeAsync(memory, static_cast<cudaStream_t>(stream));
}

// Once for each kernel and device: allows the most shared memory for a block, and for the
// multiprocessor, where a second block would have no room otherwise.
void prepare(Kernel kernel) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    static std::mutex mutex;
    static std::set<std::pair<const void*, int>> prepared;
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const std::scoped_lock lock(mutex);
    if (prepared.contains({function, device})) return;
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          "cudaFuncSetAttribute");
    check(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute");
    if (attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "cudaFuncSetAttribute");
    }
    prepared.emplace(function, device);
}

namespace {

// A launch in the runtime's form, which points to `attributes`.
cudaLaunchConfig_t configured(const Launch& launch, Stream stream,
                              cudaLaunchAttribute (&attributes)[2]) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(launch.grid));
    config.blockDim = dim3(static_cast<unsigned>(launch.cut.threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(launch.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (launch.cluster > 1) {
        cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
    }
    if (launch.cooperative) {
        cudaLaunchAttribute& cooperative = attributes[config.numAttrs++];
        cooperative.id = cudaLaunchAttributeCooperative;
        cooperative.val.cooperative = 1;
    }
    return config;
}

bool does_not_fit(cudaError_t status) {
    return status == cudaErrorCooperativeLaunchTooLarge || status == cudaErrorInvalidClusterSize ||
           status == cudaErrorLaunchOutOfResources || status == cudaErrorInvalidConfiguration ||
           status == cudaErrorNotSupported;
}

}  // namespace

int occupancy(Kernel kernel, const Launch& launch, int device) {
    const CurrentDevice current(device);
    prepare(kernel);
    const void* const function = reinterpret_cast<const void*>(kernel);
    int count = 0;
    if (launch.cluster == 1) {
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                  &count, function, launch.cut.threads,
                  static_cast<std::size_t>(launch.shared_bytes)),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
        return count;
    }
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = configured(launch, nullptr, attributes);
    const cudaError_t status = cudaOccupancyMaxActiveClusters(&count, function, &config);
    if (does_not_fit(status)) {
        (void)cudaGetLastError();
        return 0;
    }
    check(status, "cudaOccupancyMaxActiveClusters");
    return count;
}

void run(Kernel kernel, const Launch& launch, const Arguments& arguments, Stream stream) {
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = configured(launch, stream, attributes);
    Arguments copy = arguments;
    void* parameters[] = {&copy};
    const cudaError_t status =
        cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), parameters);
    if (must_be_resident(launch) && does_not_fit(status)) {
        fail(status, "cudaLaunchKernelExC", Fault::refused);
    }
    check(status, "cudaLaunchKernelExC");
}

void synchronize(Stream stream) {
    auto* const waited_for = static_cast<cudaStream_t>(stream);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(waited_for, &capture), "cudaStreamIsCapturing");
    if (capture != cudaStreamCaptureStatusNone) return;
    check(cudaStreamSynchronize(waited_for), "cudaStreamSynchronize");
}

}  // namespace bnext::cuda::runtime

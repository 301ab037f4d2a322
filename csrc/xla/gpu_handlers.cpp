// Handlers of batch normalization for CUDA. A slice is checked as on the CPU and launched on the
// stream of the program; nothing waits for the device, and no memory is taken: the workspace is a
// result that programs throw away. Launches follow from shapes, addresses and attributes alone, so
// programs may capture them in a command buffer.
//
// On a GPU there are no flags (csrc/README.md): what these calls apply has its z made again.
#include <array>

#include "core/division.hpp"
#include "cuda/channel_launch.hpp"
#include "cuda/launch.hpp"
#include "cuda/plan_cache.hpp"
#include "xla/answer.hpp"
#include "xla/described.hpp"

namespace bnext::foreign {
namespace {

using cuda::Operation;

// Where a program runs a call. `enqueues`: in its execution; before it, all that is known are
// addresses, and kernels are loaded.
struct Device {
    int number = 0;
    cuda::runtime::Stream stream = nullptr;
    bool enqueues = false;
};

// A slice as a call of the kernels.
class GpuCall : public DescribedCall {
public:
    GpuCall(Function function, bool batch_statistics, const Frame& frame, Index number,
            Operation operation, const Device& device)
        : DescribedCall(function, batch_statistics, frame, number, false),
          operation_(operation),
          device_(device) {}

    // Reads all arguments that a call may have, and writes all results.
    void run() const {
        if (channels() == 0) return;
        const cuda::Channels per_channel{x().dtype(), channels(), device_.number};
        double* const rows = statistics().mean();
        const auto [memory, bytes] = workspace();
        const Index of_z_bytes = round_up(2 * channels() * Index{sizeof(double)}, kAlignment);
        BNEXT_CHECK(bytes >= of_z_bytes, "workspace: expected ", of_z_bytes, " bytes or more, got ",
                    bytes);
        cuda::KernelCall call = described();
        if (!forward() && fused().changes_backward()) {
            call.at.of_z = reinterpret_cast<double*>(memory);
        }
        call.at.workspace = memory + of_z_bytes;
        const Index room = bytes - of_z_bytes;
        const auto plan = cuda::planned_within(call, room);
        if (!device_.enqueues) {
            cuda::prepare(per_channel);
            return cuda::prepare(*plan, device_.number);
        }
        if (call.at.of_z != nullptr) {
            cuda::keep_z(per_channel, rows, call.at.weight, call.at.bias, call.at.of_z,
                         device_.stream);
        }
        cuda::launch(*plan, call.at, call.scalars, device_.number, device_.stream, room);
        if (has("values")) {
            cuda::show_statistics(per_channel, rows, parameter("values", 3 * channels()),
                                  device_.stream);
        }
    }

private:
    static constexpr Index kAlignment = 256;

    [[nodiscard]] bool forward() const { return operation_ < Operation::backward; }

    [[nodiscard]] std::pair<unsigned char*, Index> workspace() const {
        BNEXT_CHECK(has("workspace"), "workspace: expected a result, got none");
        const auto extents = shape("workspace");
        BNEXT_CHECK(extents.size() == 1, "workspace: expected one axis, got ", extents.size());
        void* const memory = values("workspace", ffi::DataType::U8, extents[0]);
        return {static_cast<unsigned char*>(memory), extents[0]};
    }
    // Of the shape of x.
    [[nodiscard]] void* data(std::string_view name) const {
        return with_type(
            [&]<class T>() -> void* { return values(name, type_of<T>(), x().size()); });
    }
    [[nodiscard]] void* parameter(std::string_view name, Index count) const {
        return with_type([&]<class T>() -> void* { return vector<Param<T>>(name, count); });
    }
    template <class F>
    void* with_type(const F& f) const {
        void* found = nullptr;
        with_dtype(x().dtype(),
                   [&](auto type) { found = f.template operator()<decltype(type)>(); });
        return found;
    }

    [[nodiscard]] cuda::KernelCall described() const {
        cuda::KernelCall call;
        call.operation = operation_;
        call.dtype = static_cast<std::int32_t>(x().dtype());
        call.device = device_.number;
        call.rank = x().rank;
        call.channel_axis = axis();
        call.shape = x().extents;
        call.stream = device_.stream;
        call.scalars.eps = eps();
        const auto vector_of = [&](const char* name) { return parameter(name, channels()); };
        call.at.weight = vector_of("weight");
        call.at.bias = vector_of("bias");
        call.at.statistics = statistics().mean();
        call.at.x = data("x");
        if (forward()) {
            call.at.y = data("y");
            call.at.mean = vector_of("mean");
            call.at.var = vector_of("var");
        } else {
            call.at.dy = data("dy");
            call.at.dx = data("dx");
            call.at.dweight = vector_of("dweight");
            call.at.dbias = vector_of("dbias");
        }
        // A residual without an activation has dy as its gradient.
        const bool applies = forward() || fused().changes_backward();
        if (applies) {
            call.scalars.activation = static_cast<std::int32_t>(fused().activation);
            call.scalars.negative_slope = fused().negative_slope;
        }
        const bool reads_residual = applies && fused().residual;
        if (reads_residual) {
            call.at.residual = data("residual");
            if (!forward()) call.at.dresidual = data("dresidual");
        }
        const cuda::Besides besides{.activated = reads_residual || call.scalars.activation != 0,
                                    .residual = reads_residual};
        call.operands = static_cast<std::int32_t>(cuda::operands_of(operation_, besides));
        for (std::int32_t k = 0; k < call.operands; ++k) call.strides[k] = x().strides;
        return call;
    }

    Operation operation_;
    Device device_;
};

// Results of arrays without values: no kernel runs.
void clear(const Frame& frame, const Device& device) {
    const cuda::runtime::CurrentDevice current(device.number);
    for (const Named& result : frame.results()) {
        const auto bytes = static_cast<Index>(result.buffer.size_bytes());
        if (bytes > 0) {
            cuda::runtime::zero(result.buffer.untyped_data(), bytes, device.stream);
        }
    }
}

template <Function function, bool batch_statistics, Operation operation>
ffi::Error call(const Device& device, const ffi::RemainingArgs& arguments,
                const ffi::RemainingRets& results, const ffi::Dictionary& attributes) {
    return answer(arguments, results, attributes, [&](const Frame& frame) {
        for (Index slice = 0; slice < frame.slices(); ++slice) {
            const GpuCall each(function, batch_statistics, frame, slice, operation, device);
            if (each.x().size() == 0) {
                if (device.enqueues) clear(frame, device);
                return;
            }
            each.run();
        }
    });
}

using Handle = ffi::Error (*)(const Device&, const ffi::RemainingArgs&, const ffi::RemainingRets&,
                              const ffi::Dictionary&);
constexpr Handle kForward = &call<Function::forward, true, Operation::forward>;
constexpr Handle kNormalize = &call<Function::normalize, false, Operation::normalize>;
constexpr Handle kBackward = &call<Function::backward, true, Operation::backward>;
constexpr Handle kBackwardGiven = &call<Function::backward, false, Operation::backward_fixed>;

template <Handle handle>
ffi::Error execute(cuda::runtime::Stream stream, std::int32_t device, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results, ffi::Dictionary attributes) {
    return handle({device, stream, true}, arguments, results, attributes);
}
template <Handle handle>
ffi::Error initialize(std::int32_t device, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                      ffi::Dictionary attributes) {
    return handle({device, nullptr, false}, arguments, results, attributes);
}

auto execution() {
    return ffi::Ffi::Bind()
        .Ctx<ffi::PlatformStream<cuda::runtime::Stream>>()
        .Ctx<ffi::DeviceOrdinal>()
        .RemainingArgs()
        .RemainingRets()
        .Attrs();
}
auto initialization() {
    return ffi::Ffi::BindInitialize()
        .Ctx<ffi::DeviceOrdinal>()
        .RemainingArgs()
        .RemainingRets()
        .Attrs();
}

constexpr std::initializer_list<ffi::Traits> kTraits{ffi::Traits::kCmdBufferCompatible};

XLA_FFI_DEFINE_HANDLER(forward_handler, &execute<kForward>, execution(), kTraits);
XLA_FFI_DEFINE_HANDLER(normalize_handler, &execute<kNormalize>, execution(), kTraits);
XLA_FFI_DEFINE_HANDLER(backward_handler, &execute<kBackward>, execution(), kTraits);
XLA_FFI_DEFINE_HANDLER(backward_given_handler, &execute<kBackwardGiven>, execution(), kTraits);

XLA_FFI_DEFINE_HANDLER(initialize_forward, &initialize<kForward>, initialization(), kTraits);
XLA_FFI_DEFINE_HANDLER(initialize_normalize, &initialize<kNormalize>, initialization(), kTraits);
XLA_FFI_DEFINE_HANDLER(initialize_backward, &initialize<kBackward>, initialization(), kTraits);
XLA_FFI_DEFINE_HANDLER(initialize_backward_given, &initialize<kBackwardGiven>, initialization(),
                       kTraits);

}  // namespace

std::span<const Target> gpu_targets() {
    static const std::array all{
        target("bnext_gpu_forward", forward_handler, initialize_forward),
        target("bnext_gpu_normalize", normalize_handler, initialize_normalize),
        target("bnext_gpu_backward", backward_handler, initialize_backward),
        target("bnext_gpu_backward_given", backward_given_handler, initialize_backward_given),
    };
    return all;
}

}  // namespace bnext::foreign

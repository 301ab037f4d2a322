// oneDNN's batch normalization for Python: a shared library that ctypes opens, so that it runs in
// the same process, on the same arrays, in turns with the others.
//
// A Layer is one problem in one memory layout. Its primitives, memory objects and argument lists
// are made once; a call executes and waits. Functions return 0 (or null) where oneDNN refused, and
// onednn_error() says why.
#include <omp.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <string>
#include <unordered_map>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using dnnl::memory;
using Forward = dnnl::batch_normalization_forward;
using Backward = dnnl::batch_normalization_backward;
using Arguments = std::unordered_map<int, memory>;

thread_local std::string error;

enum Operation { kForward, kBackward, kInference, kOperations };

// The arrays of a call, in the order in which Python hands them over. Those of the problem's size
// lie in the layer's layout; the others have a float for each channel.
struct Arrays {
    void *x, *dy, *out;
    void *weight, *bias;
    void *given_mean, *given_var;        // for inference
    void *mean, *var, *dweight, *dbias;  // written by forward and backward
};

// oneDNN's tags for 2 to 5 dimensions, the channels second.
struct Format {
    const char* name;
    std::array<memory::format_tag, 4> tags;
};

constexpr auto kNone = memory::format_tag::undef;
using Tag = memory::format_tag;
constexpr Format kFormats[] = {
    {"planar", {Tag::ab, Tag::abc, Tag::abcd, Tag::abcde}},
    {"channels last", {Tag::ab, Tag::acb, Tag::acdb, Tag::acdeb}},
    {"blocks of 16 channels", {kNone, Tag::aBc16b, Tag::aBcd16b, Tag::aBcde16b}},
    {"blocks of 8 channels", {kNone, Tag::aBc8b, Tag::aBcd8b, Tag::aBcde8b}},
};

memory::format_tag tag_of(const std::string& name, std::size_t dimensions) {
    for (const Format& format : kFormats) {
        if (name == format.name && dimensions >= 2 && dimensions <= 5) {
            const auto tag = format.tags[dimensions - 2];
            if (tag != kNone) return tag;
        }
    }
    throw std::invalid_argument("no format '" + name + "' for this number of dimensions");
}

memory::data_type type_of(const std::string& name) {
    if (name == "float32") return memory::data_type::f32;
    if (name == "bfloat16") return memory::data_type::bf16;
    if (name == "float16") return memory::data_type::f16;
    throw std::invalid_argument("batch normalization has no " + name);
}

class Layer {
public:
    // With `relu`, forward and inference end in a ReLU, and backward begins with its derivative.
    Layer(const memory::dims& shape, const char* dtype, const char* format, float eps, bool relu)
        : engine_(dnnl::engine::kind::cpu, 0),
          stream_(engine_),
          data_(shape, type_of(dtype), tag_of(format, shape.size())),
          plain_(shape, type_of(dtype), tag_of("planar", shape.size())),
          channels_last_(shape, type_of(dtype), tag_of("channels last", shape.size())),
          channel_({shape[1]}, memory::data_type::f32, Tag::a) {
        using Flags = dnnl::normalization_flags;
        const Flags flags =
            Flags::use_scale | Flags::use_shift | (relu ? Flags::fuse_norm_relu : Flags::none);
        const Forward::primitive_desc training(engine_, dnnl::prop_kind::forward_training, data_,
                                               data_, eps, flags);
        const Backward::primitive_desc backward(engine_, dnnl::prop_kind::backward, data_, data_,
                                                data_, eps, flags, training);
        const Forward::primitive_desc inference(engine_, dnnl::prop_kind::forward_inference, data_,
                                                data_, eps, flags | Flags::use_global_stats);
        primitives_ = {Forward(training), Backward(backward), Forward(inference)};
        implementations_ = {training.impl_info_str(), backward.impl_info_str(),
                            inference.impl_info_str()};
        if (relu) workspace_ = memory(training.workspace_desc(), engine_);
    }

    void bind(const Arrays& a) {
        const auto data = [&](void* p) { return memory(data_, engine_, p); };
        const auto channel = [&](void* p) { return memory(channel_, engine_, p); };
        arguments_[kForward] = {
            {DNNL_ARG_SRC, data(a.x)},           {DNNL_ARG_DST, data(a.out)},
            {DNNL_ARG_SCALE, channel(a.weight)}, {DNNL_ARG_SHIFT, channel(a.bias)},
            {DNNL_ARG_MEAN, channel(a.mean)},    {DNNL_ARG_VARIANCE, channel(a.var)}};
        arguments_[kBackward] = {{DNNL_ARG_SRC, data(a.x)},
                                 {DNNL_ARG_DIFF_DST, data(a.dy)},
                                 {DNNL_ARG_DIFF_SRC, data(a.out)},
                                 {DNNL_ARG_SCALE, channel(a.weight)},
                                 {DNNL_ARG_MEAN, channel(a.mean)},
                                 {DNNL_ARG_VARIANCE, channel(a.var)},
                                 {DNNL_ARG_DIFF_SCALE, channel(a.dweight)},
                                 {DNNL_ARG_DIFF_SHIFT, channel(a.dbias)}};
        arguments_[kInference] = {{DNNL_ARG_SRC, data(a.x)},
                                  {DNNL_ARG_DST, data(a.out)},
                                  {DNNL_ARG_SCALE, channel(a.weight)},
                                  {DNNL_ARG_SHIFT, channel(a.bias)},
                                  {DNNL_ARG_MEAN, channel(a.given_mean)},
                                  {DNNL_ARG_VARIANCE, channel(a.given_var)}};
        if (!workspace_) return;
        for (const Operation operation : {kForward, kBackward}) {
            arguments_[operation][DNNL_ARG_WORKSPACE] = workspace_;
        }
    }

    void run(int operation) { execute(operation, arguments_.at(index(operation))); }

    // The output is memory that oneDNN allocates for this call, as it does for who brings none.
    void run_fresh(int operation) {
        Arguments arguments = arguments_.at(index(operation));
        arguments[operation == kBackward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST] =
            memory(data_, engine_);
        execute(operation, arguments);
    }

    // Between the layer's layout and the one that the arrays of Python have.
    void reorder(void* from, void* to, bool channels_last, bool back) {
        const memory::desc& usual = channels_last ? channels_last_ : plain_;
        memory source(back ? data_ : usual, engine_, from);
        memory target(back ? usual : data_, engine_, to);
        dnnl::reorder(source, target).execute(stream_, source, target);
        stream_.wait();
    }

    [[nodiscard]] std::size_t bytes() const { return data_.get_size(); }
    [[nodiscard]] const char* implementation(int operation) const {
        return implementations_.at(index(operation)).c_str();
    }

private:
    static std::size_t index(int operation) { return static_cast<std::size_t>(operation); }

    void execute(int operation, const Arguments& arguments) {
        primitives_.at(index(operation)).execute(stream_, arguments);
        stream_.wait();
    }

    dnnl::engine engine_;
    dnnl::stream stream_;
    memory::desc data_, plain_, channels_last_, channel_;
    memory workspace_;  // a bit or a byte for every value: which of them the ReLU has passed
    std::array<dnnl::primitive, kOperations> primitives_;
    std::array<std::string, kOperations> implementations_;
    std::array<Arguments, kOperations> arguments_;
};

// What an exception says goes to onednn_error().
template <class Body>
int guarded(const Body& body) {
    try {
        body();
        return 1;
    } catch (const std::exception& caught) {
        error = caught.what();
        return 0;
    }
}

}  // namespace

EXPORT const char* onednn_error() { return error.c_str(); }

EXPORT const char* onednn_version() {
    static const std::string text = [] {
        const dnnl_version_t* v = dnnl_version();
        return std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
               std::to_string(v->patch);
    }();
    return text.c_str();
}

// Layers made afterwards use this many threads. Returns how many a parallel region then has.
EXPORT int onednn_set_threads(int threads) {
    omp_set_num_threads(threads);
    int members = 0;
#pragma omp parallel
    {
#pragma omp single
        members = omp_get_num_threads();
    }
    return members;
}

EXPORT Layer* onednn_create(const std::int64_t* shape, int dimensions, const char* dtype,
                            const char* format, float eps, int relu) {
    std::unique_ptr<Layer> layer;
    guarded([&] {
        layer = std::make_unique<Layer>(memory::dims(shape, shape + dimensions), dtype, format, eps,
                                        relu != 0);
    });
    return layer.release();
}

EXPORT void onednn_destroy(Layer* layer) { delete layer; }

EXPORT std::size_t onednn_bytes(const Layer* layer) { return layer->bytes(); }

EXPORT const char* onednn_implementation(const Layer* layer, int operation) {
    return layer->implementation(operation);
}

EXPORT int onednn_bind(Layer* layer, const Arrays* arrays) {
    return guarded([&] { layer->bind(*arrays); });
}

EXPORT int onednn_run(Layer* layer, int operation) {
    return guarded([&] { layer->run(operation); });
}

EXPORT int onednn_run_fresh(Layer* layer, int operation) {
    return guarded([&] { layer->run_fresh(operation); });
}

EXPORT int onednn_reorder(Layer* layer, void* from, void* to, int channels_last, int back) {
    return guarded([&] { layer->reorder(from, to, channels_last != 0, back != 0); });
}

// Calls of handlers as a program of XLA's makes them on a GPU, for tests without one: call frames
// with arrays at addresses, attributes, a stream and a device, and XLA's functions as far as a
// handler may use them. A handler that asks for memory gets an error.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <xla/ffi/api/c_api.h>

#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/register.hpp"
#include "core/error.hpp"
#include "xla/handlers.hpp"

namespace py = pybind11;

// XLA's own, which handlers only hand on.
struct XLA_FFI_Error {
    int code;
    std::string text;
};
struct XLA_FFI_ExecutionContext {
    void* stream;
    int device;
};

namespace bnext::bindings {
namespace {

XLA_FFI_Error* create(XLA_FFI_Error_Create_Args* args) {
    return new XLA_FFI_Error{args->errc, args->message};
}
void message_of(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->text.c_str(); }
void destroy(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }
XLA_FFI_Error* stream_of(XLA_FFI_Stream_Get_Args* args) {
    args->stream = args->ctx->stream;
    return nullptr;
}
XLA_FFI_Error* device_of(XLA_FFI_DeviceOrdinal_Get_Args* args) {
    args->device_ordinal = args->ctx->device;
    return nullptr;
}
XLA_FFI_Error* no_memory(XLA_FFI_DeviceMemory_Allocate_Args*) {
    return new XLA_FFI_Error{XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "a handler asks for memory"};
}

XLA_FFI_Api functions() {
    XLA_FFI_Api api{};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                       XLA_FFI_API_MINOR};
    api.XLA_FFI_Error_Create = &create;
    api.XLA_FFI_Error_GetMessage = &message_of;
    api.XLA_FFI_Error_Destroy = &destroy;
    api.XLA_FFI_Stream_Get = &stream_of;
    api.XLA_FFI_DeviceOrdinal_Get = &device_of;
    api.XLA_FFI_DeviceMemory_Allocate = &no_memory;
    return api;
}

XLA_FFI_CallFrame empty_frame(const XLA_FFI_Api& api, XLA_FFI_ExecutionContext* context) {
    XLA_FFI_CallFrame frame{};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = &api;
    frame.ctx = context;
    frame.args.struct_size = XLA_FFI_Args_STRUCT_SIZE;
    frame.rets.struct_size = XLA_FFI_Rets_STRUCT_SIZE;
    frame.attrs.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
    return frame;
}

// Of a handler's capsule.
XLA_FFI_Handler* handler_in(const py::capsule& capsule) {
    return reinterpret_cast<XLA_FFI_Handler*>(capsule.get_pointer<void>());
}

// dtype by its name in JAX, address, shape.
using Array = std::tuple<std::string, std::uintptr_t, std::vector<std::int64_t>>;

XLA_FFI_DataType type_named(const std::string& name) {
    static const std::map<std::string, XLA_FFI_DataType> types{
        {"float32", XLA_FFI_DataType_F32}, {"float64", XLA_FFI_DataType_F64},
        {"float16", XLA_FFI_DataType_F16}, {"bfloat16", XLA_FFI_DataType_BF16},
        {"uint8", XLA_FFI_DataType_U8},    {"uint32", XLA_FFI_DataType_U32},
        {"int32", XLA_FFI_DataType_S32},
    };
    const auto found = types.find(name);
    BNEXT_CHECK(found != types.end(), "dtype: expected one that programs have, got ", name);
    return found->second;
}

struct Buffers {
    explicit Buffers(std::vector<Array>& arrays) {
        for (auto& [type, address, shape] : arrays) {
            all.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, type_named(type),
                           reinterpret_cast<void*>(address),
                           static_cast<std::int64_t>(shape.size()), shape.data()});
        }
        for (XLA_FFI_Buffer& each : all) pointers.push_back(&each);
    }

    std::vector<XLA_FFI_Buffer> all;
    std::vector<void*> pointers;
};

using Attribute = std::variant<bool, std::int64_t, double, std::string>;

class Attributes {
public:
    explicit Attributes(std::map<std::string, Attribute>& attributes) {
        for (auto& [name, value] : attributes) {  // sorted, as XLA promises
            names_.push_back({name.data(), name.size()});
            std::visit([&](auto& each) { add(each); }, value);
        }
        for (XLA_FFI_ByteSpan& each : names_) name_pointers_.push_back(&each);
    }
    [[nodiscard]] XLA_FFI_Attrs get() {
        return {XLA_FFI_Attrs_STRUCT_SIZE,
                nullptr,
                static_cast<std::int64_t>(types_.size()),
                types_.data(),
                name_pointers_.data(),
                values_.data()};
    }

private:
    void add(std::string& text) {
        texts_.push_back({text.data(), text.size()});
        types_.push_back(XLA_FFI_AttrType_STRING);
        values_.push_back(&texts_.back());
    }
    void add(bool& value) { add(XLA_FFI_DataType_PRED, &value); }
    void add(std::int64_t& value) { add(XLA_FFI_DataType_S64, &value); }
    void add(double& value) { add(XLA_FFI_DataType_F64, &value); }
    void add(XLA_FFI_DataType type, void* value) {
        scalars_.push_back({type, value});
        types_.push_back(XLA_FFI_AttrType_SCALAR);
        values_.push_back(&scalars_.back());
    }

    std::deque<XLA_FFI_ByteSpan> names_, texts_;
    std::deque<XLA_FFI_Scalar> scalars_;
    std::vector<XLA_FFI_ByteSpan*> name_pointers_;
    std::vector<XLA_FFI_AttrType> types_;
    std::vector<void*> values_;
};

// The code of the error, which is 0 without one, and its text.
std::pair<int, std::string> call_handler(const py::capsule& handler, bool executes,
                                         std::vector<Array> arguments, std::vector<Array> results,
                                         std::map<std::string, Attribute> attributes, int device,
                                         std::uintptr_t stream) {
    const XLA_FFI_Api api = functions();
    XLA_FFI_ExecutionContext context{reinterpret_cast<void*>(stream), device};
    XLA_FFI_CallFrame frame = empty_frame(api, &context);
    frame.stage = executes ? XLA_FFI_ExecutionStage_EXECUTE : XLA_FFI_ExecutionStage_INITIALIZE;
    Buffers inputs(arguments), outputs(results);
    std::vector<XLA_FFI_ArgType> input_types(inputs.all.size(), XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> output_types(outputs.all.size(), XLA_FFI_RetType_BUFFER);
    frame.args.size = static_cast<std::int64_t>(inputs.all.size());
    frame.args.types = input_types.data();
    frame.args.args = inputs.pointers.data();
    frame.rets.size = static_cast<std::int64_t>(outputs.all.size());
    frame.rets.types = output_types.data();
    frame.rets.rets = outputs.pointers.data();
    Attributes named(attributes);
    frame.attrs = named.get();
    XLA_FFI_Error* const error = handler_in(handler)(&frame);
    if (error == nullptr) return {0, ""};
    std::pair<int, std::string> told{error->code, error->text};
    delete error;
    return told;
}

// A handler's answer to the question that XLA asks when the handler is registered.
bool may_be_captured(const py::capsule& handler) {
    const XLA_FFI_Api api = functions();
    XLA_FFI_CallFrame frame = empty_frame(api, nullptr);
    XLA_FFI_Metadata metadata{};
    metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
    metadata.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
    XLA_FFI_Metadata_Extension extension{
        {XLA_FFI_Metadata_Extension_STRUCT_SIZE, XLA_FFI_Extension_Metadata, nullptr}, &metadata};
    frame.extension_start = &extension.extension_base;
    const XLA_FFI_Error* const error = handler_in(handler)(&frame);
    BNEXT_CHECK(error == nullptr, "handler: ", error == nullptr ? "" : error->text);
    BNEXT_CHECK(metadata.api_version.major_version == XLA_FFI_API_MAJOR &&
                    metadata.api_version.minor_version == XLA_FFI_API_MINOR,
                "handler: expected the version of the headers");
    return (metadata.traits & XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE) != 0;
}

// A handler in a program of XLA's CPU, which has no stream.
template <std::size_t number>
XLA_FFI_Error* on_a_cpu(XLA_FFI_CallFrame* frame) {
    XLA_FFI_Api api = *frame->api;
    api.XLA_FFI_Stream_Get = [](XLA_FFI_Stream_Get_Args* args) -> XLA_FFI_Error* {
        args->stream = nullptr;
        return nullptr;
    };
    XLA_FFI_CallFrame mine = *frame;
    mine.api = &api;
    return reinterpret_cast<XLA_FFI_Handler*>(foreign::gpu_targets()[number].handler)(&mine);
}

py::dict targets_on_a_cpu() {
    py::dict found;
    const auto add = [&]<std::size_t... numbers>(std::index_sequence<numbers...>) {
        const auto targets = foreign::gpu_targets();
        BNEXT_CHECK(targets.size() == sizeof...(numbers), "targets: expected as many");
        ((found[targets[numbers].name] =
              py::capsule(reinterpret_cast<void*>(&on_a_cpu<numbers>), "xla._CUSTOM_CALL_TARGET")),
         ...);
    };
    add(std::make_index_sequence<4>());
    return found;
}

}  // namespace

void register_emulated_programs(py::module_& m) {
    m.def("targets_on_a_cpu", &targets_on_a_cpu,
          "The handlers, as capsules for programs of XLA's CPU, which have no stream.");
    m.def("call_handler", &call_handler, py::arg("handler"), py::arg("executes"),
          py::arg("arguments"), py::arg("results"), py::arg("attributes"), py::arg("device") = 0,
          py::arg("stream") = 0,
          "Call a handler as a program does, in its execution or before; arrays are (dtype,\n"
          "address, shape). Gives the code of an error, 0 without one, and its text.");
    m.def("may_be_captured", &may_be_captured, py::arg("handler"),
          "Whether a handler says that command buffers may contain its calls.");
}

}  // namespace bnext::bindings

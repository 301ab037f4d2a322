// DLPack: the exchange of arrays between libraries, without a copy. A producer hands out a capsule
// with a description of its memory and a function that gives the memory back; whoever takes the
// description over renames the capsule. Two forms are in use, with and without a version.
//
// The structures are those of the standard's binary interface (dmlc.github.io/dlpack), version 1.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/dtype.hpp"

namespace bnext::intake::dlpack {

enum DeviceType : std::int32_t {
    kCPU = 1,
    kCUDA = 2,
    kCUDAHost = 3,  // the CPU's memory, pinned
    kMetal = 8,
    kROCm = 10,
    kROCmHost = 11,
    kCUDAManaged = 13,
    kOneAPI = 14,
};

struct Device {
    std::int32_t type;
    std::int32_t id;
};

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex, kBool };

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: in C order
    std::uint64_t byte_offset;
};

struct Managed {
    static constexpr const char* kName = "dltensor";
    static constexpr const char* kUsed = "used_dltensor";

    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

struct ManagedVersioned {
    static constexpr const char* kName = "dltensor_versioned";
    static constexpr const char* kUsed = "used_dltensor_versioned";
    static constexpr Version kVersion = {1, 0};  // what is written here; any 1.x is read
    static constexpr std::uint64_t kReadOnly = 1;

    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};

// A library's table of C functions (version 1.3), which do what Python's calls of the protocol do.
// All of them want the GIL.
struct ExchangeTable {
    static constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
    static constexpr const char* kName = "dlpack_exchange_api";

    Version version;
    ExchangeTable* older;
    int (*allocate)(Tensor*, ManagedVersioned**, void*, void (*)(void*, const char*, const char*));
    int (*export_owned)(void* object, ManagedVersioned** tensor);
    int (*import_owned)(ManagedVersioned* tensor, void** object);  // takes it over
    int (*describe)(void* object, Tensor* tensor);  // lends; null where a library cannot
    int (*current_stream)(std::int32_t type, std::int32_t id, void** stream);
};

// That of a type of tensors; null where it has none, or one of another major version.
const ExchangeTable* exchange_table(pybind11::handle type);

// Which of the supported dtypes it is, and the other way round.
std::optional<DType> supported(DataType type);
DataType type_of(DType dtype);

// NumPy's dtype. Of bfloat16 it is that of ml_dtypes; where that is missing, an error names `name`.
pybind11::object descr_for(DType dtype, const std::string& name);

// "cuda:0", say.
std::string device_name(std::int32_t type, std::int32_t id);

// Where the array lies, if that is not memory that the CPU reads; also for objects that have only
// __cuda_array_interface__.
std::optional<std::string> elsewhere(pybind11::handle object);

// A NumPy array on the memory that a capsule describes, which it uses up.
pybind11::object from_dlpack(pybind11::handle capsule, const std::string& name);
// Its fields, of any device, and what keeps the memory (bindings/exchange.cpp).
pybind11::tuple describe_dlpack(pybind11::handle capsule, const std::string& name);

// A NumPy array as a DLPack producer, also of bfloat16.
class Exported {
public:
    explicit Exported(pybind11::handle array);
    [[nodiscard]] pybind11::object capsule(const pybind11::object& stream,
                                           const pybind11::object& max_version,
                                           const pybind11::object& dl_device,
                                           const pybind11::object& copy) const;

private:
    pybind11::object array_;
};

// The name of a data type: "int32", say.
std::string text_of(DataType type);

// TypeError for an array of a library on the CPU that has elements and no memory.
void check_has_memory(pybind11::handle object, const char* name);

}  // namespace bnext::intake::dlpack

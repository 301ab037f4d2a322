// What both extension modules know of DLPack.
#include "intake/dlpack.hpp"
#include "core/error.hpp"

namespace bnext::intake::dlpack {

namespace py = pybind11;

std::string device_name(std::int32_t type, std::int32_t id) {
    switch (type) {
        case kCPU:
        case kCUDAHost:
        case kROCmHost: return "the CPU";
        case kCUDA:
        case kCUDAManaged: return concat("cuda:", id);
        case kMetal: return concat("metal:", id);
        case kROCm: return concat("rocm:", id);
        case kOneAPI: return concat("oneapi:", id);
        default: return concat("a device of DLPack's type ", type);
    }
}

std::optional<DType> supported(DataType type) {
    if (type.lanes != 1) return std::nullopt;
    if (type.code == kBfloat && type.bits == 16) return DType::bfloat16;
    if (type.code != kFloat) return std::nullopt;
    switch (type.bits) {
        case 16: return DType::float16;
        case 32: return DType::float32;
        case 64: return DType::float64;
        default: return std::nullopt;
    }
}

DataType type_of(DType dtype) {
    const auto code = static_cast<std::uint8_t>(dtype == DType::bfloat16 ? kBfloat : kFloat);
    return {code, static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

std::string text_of(DataType type) {
    const auto name = [&]() -> std::string {
        switch (type.code) {
            case kInt: return "int";
            case kUInt: return "uint";
            case kFloat: return "float";
            case kBfloat: return "bfloat";
            case kComplex: return "complex";
            case kBool: return "bool";
            default: return concat("DLPack's type ", static_cast<int>(type.code), " of ");
        }
    }();
    const std::string bits = type.code == kBool ? "" : std::to_string(type.bits);
    return name + bits + (type.lanes == 1 ? "" : concat(" in lanes of ", type.lanes));
}

const ExchangeTable* exchange_table(py::handle type) {
    if (!py::hasattr(type, ExchangeTable::kAttribute)) return nullptr;
    const py::object capsule = type.attr(ExchangeTable::kAttribute);
    if (PyCapsule_IsValid(capsule.ptr(), ExchangeTable::kName) == 0) return nullptr;
    const auto* table = static_cast<const ExchangeTable*>(
        PyCapsule_GetPointer(capsule.ptr(), ExchangeTable::kName));
    while (table != nullptr && table->version.major != ManagedVersioned::kVersion.major) {
        table = table->older;
    }
    return table != nullptr && table->describe != nullptr ? table : nullptr;
}

}  // namespace bnext::intake::dlpack

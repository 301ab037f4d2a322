#include "cuda/environment.hpp"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/error.hpp"

namespace bnext::cuda {
namespace {

int number(const char* variable, int most, const char* expected) {
    const char* const value = std::getenv(variable);
    if (value == nullptr || *value == '\0') return 0;
    const std::string_view text(value);
    int result = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
    BNEXT_CHECK(
        error == std::errc() && end == text.data() + text.size() && result >= 0 && result <= most,
        variable, ": expected ", expected, ", got '", text, "'");
    return result;
}

}  // namespace

const Environment& environment() {
    static const Environment read{
        number("BNEXT_CUDA_SYNC", 1, "0 or 1") == 1,
        number("BNEXT_CUDA_RESERVE", 1'000'000, "a number of multiprocessors"),
    };
    return read;
}

}  // namespace bnext::cuda

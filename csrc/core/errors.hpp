// Checks that memory safety rests on. They stand before any memory is touched; pybind11 turns
// std::invalid_argument into ValueError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace bnext {

template <class... Parts>
std::string concat(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}

}  // namespace bnext

#define BNEXT_CHECK(condition, ...)                                    \
    do {                                                               \
        if (!(condition)) {                                            \
            throw std::invalid_argument(::bnext::concat(__VA_ARGS__)); \
        }                                                              \
    } while (false)

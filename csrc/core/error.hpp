// Errors have a kind, and a text for people: nothing looks into the text.
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace bnext {

class Error : public std::exception {
public:
    // type: a wrong argument, Python's TypeError. The others are ValueErrors: a wrong argument;
    // what another forward call has left; a layout that has to be copied first; a path that cannot
    // run.
    enum class Kind : std::uint8_t { type, value, saved, layout, path };

    Error(Kind kind, std::string text) : kind_(kind), text_(std::move(text)) {}

    [[nodiscard]] Kind kind() const { return kind_; }
    [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }

private:
    Kind kind_;
    std::string text_;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}

template <class... Parts>
[[noreturn]] void type_error(const Parts&... parts) {
    throw Error(Error::Kind::type, concat(parts...));
}
template <class... Parts>
[[noreturn]] void value_error(const Parts&... parts) {
    throw Error(Error::Kind::value, concat(parts...));
}

}  // namespace bnext

// Checks that memory safety rests on. They stand before any memory is touched.
#define BNEXT_CHECK(condition, ...)                          \
    do {                                                     \
        if (!(condition)) ::bnext::value_error(__VA_ARGS__); \
    } while (false)

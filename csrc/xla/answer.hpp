// How every handler answers, on every platform: a body over the arrays of one call of XLA's, with
// errors as XLA has them.
#pragma once

#include <new>

#include "xla/frame.hpp"
#include "xla/handlers.hpp"

namespace bnext::foreign {

// Calls body(frame).
template <class Body>
ffi::Error answer(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                  const ffi::Dictionary& attributes, const Body& body) {
    try {
        body(Frame(arguments, results, attributes));
        return ffi::Error::Success();
    } catch (const Error& error) {
        return ffi::Error::InvalidArgument(error.what());
    } catch (const std::bad_alloc&) {
        return {ffi::ErrorCode::kResourceExhausted, "bnext: not enough memory"};
    } catch (const std::exception& error) {
        return ffi::Error::Internal(error.what());
    }
}

inline Target target(const char* name, XLA_FFI_Handler* handler,
                     XLA_FFI_Handler* initialize = nullptr) {
    return {name, reinterpret_cast<void*>(handler), reinterpret_cast<void*>(initialize)};
}

}  // namespace bnext::foreign

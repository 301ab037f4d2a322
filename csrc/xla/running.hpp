// How every handler runs: over the arrays of one call of XLA's, with errors as XLA has them. All
// of it is the calling thread's work, and a team's that it starts.
#pragma once

#include <new>

#include "core/float_mode.hpp"
#include "cpu/pages.hpp"
#include "xla/frame.hpp"
#include "xla/handlers.hpp"

namespace bnext::foreign {

// Calls body(frame).
template <class Body>
ffi::Error run(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
               const ffi::Dictionary& attributes, const Body& body) {
    try {
        const Frame frame(arguments, results, attributes);
        // Programs have fresh memory for every result, which takes longer to map than to write.
        for (const Named& result : frame.results()) {
            cpu::advise_huge_pages(result.buffer.untyped_data(), result.buffer.size_bytes());
        }
        const FloatMode mode;
        body(frame);
        return ffi::Error::Success();
    } catch (const Error& error) {
        return ffi::Error::InvalidArgument(error.what());
    } catch (const std::bad_alloc&) {
        return {ffi::ErrorCode::kResourceExhausted, "bnext: not enough memory"};
    } catch (const std::exception& error) {
        return ffi::Error::Internal(error.what());
    }
}

// Calls each(frame, slice).
template <class Each>
ffi::Error run_slices(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                      const ffi::Dictionary& attributes, const Each& each) {
    return run(arguments, results, attributes, [&](const Frame& frame) {
        for (Index slice = 0; slice < frame.slices(); ++slice) each(frame, slice);
    });
}

// Calls each(frame, slice, times): of slices that differ in x alone once, for all of them.
template <class Each>
ffi::Error run_together(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                        const ffi::Dictionary& attributes, const Each& each) {
    return run(arguments, results, attributes, [&](const Frame& frame) {
        const Index slices = frame.slices();
        if (slices > 0 && frame.only_first_is_mapped()) return each(frame, 0, slices);
        for (Index slice = 0; slice < slices; ++slice) each(frame, slice, 1);
    });
}

inline auto binding() { return ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs(); }

inline Target target(const char* name, XLA_FFI_Handler* handler) {
    return {name, reinterpret_cast<void*>(handler)};
}

}  // namespace bnext::foreign

// How every handler on the CPU runs: all of it is the calling thread's work, and a team's that it
// starts.
#pragma once

#include "core/float_mode.hpp"
#include "cpu/pages.hpp"
#include "xla/answer.hpp"

namespace bnext::foreign {

// Calls body(frame).
template <class Body>
ffi::Error run(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
               const ffi::Dictionary& attributes, const Body& body) {
    return answer(arguments, results, attributes, [&](const Frame& frame) {
        // Programs have fresh memory for every result, which takes longer to map than to write.
        for (const Named& result : frame.results()) {
            cpu::advise_huge_pages(result.buffer.untyped_data(), result.buffer.size_bytes());
        }
        const FloatMode mode;
        body(frame);
    });
}

// Calls each(frame, slice).
template <class Each>
ffi::Error run_slices(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                      const ffi::Dictionary& attributes, const Each& each) {
    return run(arguments, results, attributes, [&](const Frame& frame) {
        for (Index slice = 0; slice < frame.slices(); ++slice) each(frame, slice);
    });
}

// Calls each(frame, slice, times): of slices that differ in data alone once, for all of them.
template <class Each>
ffi::Error run_together(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                        const ffi::Dictionary& attributes, const Each& each) {
    return run(arguments, results, attributes, [&](const Frame& frame) {
        const Index slices = frame.slices();
        if (slices > 0 && frame.only_data_is_mapped()) return each(frame, 0, slices);
        for (Index slice = 0; slice < slices; ++slice) each(frame, slice, 1);
    });
}

inline auto binding() { return ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs(); }

}  // namespace bnext::foreign

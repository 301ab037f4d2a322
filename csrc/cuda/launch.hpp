// One call, from a plan and addresses to what is enqueued on a stream.
#pragma once

#include <string>

#include "core/error.hpp"
#include "cuda/environment.hpp"
#include "cuda/runtime.hpp"

namespace bnext::cuda {

// Throws Error where an address is missing that the operation needs, and
// runtime::Error with the launch's name. A cooperative or cluster launch that the device refuses
// runs as two kernels, in the workspace if that has `room` for them (bytes), else in one that the
// call takes on its stream; if its path was forced, it fails. Of a call that fails no kernel is
// enqueued, unless the second of two is refused.
void launch(const LaunchPlan& plan, const Addresses& addresses, const Scalars& scalars, int device,
            runtime::Stream stream, Index room = 0);

// Does what the first launch of a plan would do besides enqueueing: the device's code is loaded,
// and the device asked for its room.
void prepare(const LaunchPlan& plan, int device);

// Of errors of any launch: the device by its name; the likely cause of an error that a kernel left
// behind. `waited`: all earlier kernels are known to have succeeded.
std::string text_of_device(int device);
std::string remark_on(const runtime::Error& error, bool waited, const Launch& launch);

// f(), whose errors get the name of their launch by text(), and the likely cause by `waited`.
template <class Text, class F>
void naming(const Launch& launch, bool waited, Text&& text, F&& f) {
    try {
        f();
    } catch (const runtime::Error& error) {
        throw runtime::Error(error.fault,
                             concat(text(), ": ", error.what(), remark_on(error, waited, launch)));
    }
}
// Enqueues a launch. Where launches are synchronous, waits for what came before, and for it.
template <class Text>
void run_named(Kernel kernel, const Launch& launch, const Arguments& arguments,
               runtime::Stream stream, Text&& text) {
    const bool synchronous = environment().synchronous;
    if (synchronous) naming(launch, false, text, [&] { runtime::synchronize(stream); });
    naming(launch, synchronous, text, [&] {
        runtime::run(kernel, launch, arguments, stream);
        if (synchronous) runtime::synchronize(stream);
    });
}

}  // namespace bnext::cuda

// Computing without the GIL, also while the interpreter ends.
//
// A daemon thread that asks for the GIL back then does not get it. Before Python 3.14 pthread_exit
// ends the thread: it unwinds the C++ stack, destroys Python objects without the GIL, and aborts
// the process at the first destructor that may not throw. Here such a thread waits instead, as in
// Python 3.14; the process is about to end anyway.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "core/dtype.hpp"

namespace bnext::bindings {

inline void take_gil_back(PyThreadState* state) {
#ifdef __GLIBCXX__
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
#else
    PyEval_RestoreThread(state);
#endif
}

// A computation over fewer elements than this, some microseconds, keeps the GIL. Releasing the GIL
// and taking it back costs a tenth of a microsecond, but milliseconds (sys.getswitchinterval) where
// another thread takes it meanwhile.
constexpr Index kWorthTheGil = 16384;

// Runs f, which must not touch Python objects, over that many elements.
template <class F>
void without_gil(Index elements, const F& f) {
    if (elements < kWorthTheGil) return f();
    PyThreadState* state = PyEval_SaveThread();
    try {
        f();
    } catch (...) {
        take_gil_back(state);
        throw;
    }
    take_gil_back(state);
}

}  // namespace bnext::bindings

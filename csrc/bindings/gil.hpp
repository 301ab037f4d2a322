// Computing without the GIL, in a way that survives the end of the interpreter.
//
// A daemon thread that asks for the GIL back while the interpreter ends does not get it: before
// Python 3.14 it is ended by pthread_exit, which unwinds the C++ stack, destroys Python objects
// without the GIL, and aborts the process at the first destructor that may not throw. Such a thread
// is made to wait instead, as Python 3.14 does; the process is about to end anyway.
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

// A computation over fewer elements than this, some microseconds, keeps the GIL: to give it away
// and take it back costs a tenth of a microsecond if nobody wants it, and if another thread does,
// milliseconds (sys.getswitchinterval) until that one gives it back.
constexpr Index kWorthTheGil = 16384;

// f, over that many elements, must not touch Python objects.
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

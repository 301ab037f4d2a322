// The operations as programs of XLA call them: foreign functions of its typed interface. Nothing
// here knows of Python, and nothing takes the GIL.
#pragma once

#include <span>

namespace bnext::foreign {

struct Target {
    const char* name;
    void* handler;               // an XLA_FFI_Handler, which a program calls
    void* initialize = nullptr;  // the same, called before a program runs; null: there is none
};

std::span<const Target> batch_targets();  // batch normalization
std::span<const Target> row_targets();    // layer and RMS normalization
std::span<const Target> cell_targets();   // group and instance normalization
std::span<const Target>
gpu_targets();  // batch normalization on a GPU, in the module of its kernels

}  // namespace bnext::foreign

// What an instruction set supplies for the activation of experts by itself, where the sums of gate and up are computed
// apart from it: one function, compiled from activation_<lanes>.cpp on the same lanes as the kernel tables.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

struct ActivationArgs {
  const float* gate;  // null if the activation is one for experts without a gate
  const float* up;
  int64_t count;
  Activation activation;
  float* out;  // may be `gate` or `up`
};

// Writes the intermediates before they are rounded, with the bits that the kernels of the same lanes compute.
using ActivationKernel = void(const ActivationArgs&);

}  // namespace mxfp4moe

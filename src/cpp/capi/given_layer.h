// Layers of Python, for calls that come without it.
#pragma once

#include <vector>

#include "capi/include/mxfp4moe.h"
#include "capi/packed_file.h"

namespace mxfp4moe::capi {

// Makes a layer of the bytes of a packed file that lacks the parts of its experts, which are given.
mxfp4moe_status make_layer(const uint8_t* data, int64_t size, const std::vector<GivenExperts>& given,
                           mxfp4moe_layer** layer);

}  // namespace mxfp4moe::capi

// Two names of the file system change places.
#pragma once

namespace mxfp4moe {

// At no moment does either name lead to nothing. False, and nothing is changed, if the system cannot do that.
bool exchange_names(const char* a, const char* b);

}  // namespace mxfp4moe

// How many processors this process may use.
#pragma once

namespace mxfp4moe {

// The lesser of the affinity mask (looked up at each call) and the cgroup CPU quota rounded up (looked up
// once), at least 1.
int available_cpus();

}  // namespace mxfp4moe

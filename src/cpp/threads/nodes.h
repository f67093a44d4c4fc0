// NUMA nodes: on some machines, each part of the memory is nearer to some processors than to others.
#pragma once

#include "platform/exported.h"

namespace mxfp4moe {

constexpr int kMaxNodes = 16;  // on a machine with more, some nodes count as one

// Counts the nodes of this machine that have processors; at least 1.
int num_nodes() MXFP4MOE_EXPORTED(num_nodes);

// Returns the node of the calling thread's processor, in [0, num_nodes()).
int current_node();

// For tests: pretends that there are so many nodes, and deals threads to them in the order in which they first ask for
// their node. 0 ends the pretence.
void simulate_nodes(int count) MXFP4MOE_EXPORTED(simulate_nodes);

}  // namespace mxfp4moe

// NUMA nodes: memory is nearer to some processors than to others.
#pragma once

namespace mxfp4moe {

constexpr int kMaxNodes = 16;  // of more, some count as one

// The nodes of this machine that have processors, at least 1.
int num_nodes();

// That of the calling thread's processor, in [0, num_nodes()).
int current_node();

// For tests: as if there were so many nodes, with threads dealt to them in the order of their first question.
// 0 ends it.
void simulate_nodes(int count);

}  // namespace mxfp4moe

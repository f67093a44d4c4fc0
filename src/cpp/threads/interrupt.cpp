#include "threads/interrupt.h"

#include <utility>

namespace mxfp4moe {

void InterruptibleCall::set_check(Check check) { check_.store(check, std::memory_order_relaxed); }

InterruptibleCall* InterruptibleCall::work_for(InterruptibleCall* call) { return std::exchange(current_, call); }

}  // namespace mxfp4moe

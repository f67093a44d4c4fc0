#include "jax/weights_table.h"

namespace mxfp4moe::jax {

void WeightsTable::hold(int64_t number, const PackedLayer& experts) {
  const std::lock_guard<std::mutex> guard(lock_);
  held_[number] = {experts, 0, false};
}

void WeightsTable::release(int64_t number) {
  std::unique_lock<std::mutex> guard(lock_);
  const auto at = held_.find(number);
  if (at == held_.end()) return;
  at->second.is_released = true;
  unused_.wait(guard, [&] { return at->second.num_users == 0; });
  held_.erase(at);
}

const PackedLayer* WeightsTable::begin_use(int64_t number) {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto at = held_.find(number);
  if (at == held_.end() || at->second.is_released) return nullptr;
  ++at->second.num_users;
  return &at->second.experts;
}

void WeightsTable::end_use(int64_t number) {
  const std::lock_guard<std::mutex> guard(lock_);
  if (--held_.at(number).num_users == 0) unused_.notify_all();
}

}  // namespace mxfp4moe::jax

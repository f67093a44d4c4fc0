#include "jax/weights_table.h"

#include "jax/call_frame.h"

namespace mxfp4moe::jax {

void WeightsTable::hold(int64_t number, const Weights& weights) {
  const std::lock_guard<std::mutex> guard(lock_);
  held_[number] = {weights, 0, false};
}

void WeightsTable::release(int64_t number) {
  std::unique_lock<std::mutex> guard(lock_);
  const auto at = held_.find(number);
  if (at == held_.end()) return;
  at->second.is_released = true;
  unused_.wait(guard, [&] { return at->second.num_users == 0; });
  mxfp4moe_close_layer(at->second.weights.layer);
  held_.erase(at);
}

const Weights* WeightsTable::begin_use(int64_t number) {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto at = held_.find(number);
  if (at == held_.end() || at->second.is_released) return nullptr;
  ++at->second.num_users;
  return &at->second.weights;
}

void WeightsTable::end_use(int64_t number) {
  const std::lock_guard<std::mutex> guard(lock_);
  if (--held_.at(number).num_users == 0) unused_.notify_all();
}

WeightsTable& table() {
  static WeightsTable& instance = *new WeightsTable;
  return instance;
}

Use::Use(int64_t number, const char* argument) : number_(number), weights_(table().begin_use(number)) {
  if (weights_ != nullptr) return;
  const std::string name = argument;
  throw Failure{xla::kFailedPrecondition,
                name + ": expected what the function was traced with, got nothing: it is gone"};
}

}  // namespace mxfp4moe::jax

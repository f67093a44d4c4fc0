// The weights that compiled functions name by numbers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>

#include "packing/storage.h"

namespace mxfp4moe::jax {

class WeightsTable {
 public:
  // The memory of the experts must stay until `release` has returned.
  void hold(int64_t number, const PackedLayer& experts);
  // Waits for the calls that use the weights; later ones do not find them. Other numbers are left alone.
  void release(int64_t number);

  // The experts of a number, or null if they are gone; `end_use` is called after the use of what is found.
  const PackedLayer* begin_use(int64_t number);
  void end_use(int64_t number);

 private:
  struct Held {
    PackedLayer experts;
    int num_users;
    bool is_released;
  };

  std::mutex lock_;
  std::condition_variable unused_;
  std::map<int64_t, Held> held_;
};

}  // namespace mxfp4moe::jax

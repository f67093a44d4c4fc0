// The weights that compiled functions name by numbers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>

#include "capi/include/mxfp4moe.h"
#include "packing/storage.h"

namespace mxfp4moe::jax {

// Packed experts, or a layer, which has a handle and is closed when it is released.
struct Weights {
  PackedLayer experts{};
  mxfp4moe_layer* layer = nullptr;
};

class WeightsTable {
 public:
  // The memory of the experts must stay until `release` has returned.
  void hold(int64_t number, const Weights& weights);
  // Waits for the calls that use the weights; later ones do not find them. Other numbers are left alone.
  void release(int64_t number);

  // The weights of a number, or null if they are gone; `end_use` is called after the use of what is found.
  const Weights* begin_use(int64_t number);
  void end_use(int64_t number);

 private:
  struct Held {
    Weights weights;
    int num_users;
    bool is_released;
  };

  std::mutex lock_;
  std::condition_variable unused_;
  std::map<int64_t, Held> held_;
};

// The table of the process. It is never destroyed, because threads of XLA may use it until the last moment.
WeightsTable& table();

// The weights of a number, for as long as this lives; `argument` names them where they are gone.
class Use {
 public:
  Use(int64_t number, const char* argument);
  ~Use() { table().end_use(number_); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  const Weights& weights() const { return *weights_; }

 private:
  const int64_t number_;
  const Weights* const weights_;
};

}  // namespace mxfp4moe::jax

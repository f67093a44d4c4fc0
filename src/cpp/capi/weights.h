// Packed experts and matrices: what they are, and their bytes. They do not change.
#pragma once

#include <memory>

#include "capi/formats.h"
#include "capi/packed_file.h"
#include "moe/problem.h"
#include "packing/storage.h"

namespace mxfp4moe::capi {

struct Experts {
  const Format* format = nullptr;  // of w13
  const Format* w2_format = nullptr;
  StorageShape shape{};  // of all that are in memory
  PackedLayer layer{};   // those that are counted
  int64_t num_bytes = 0;
  std::shared_ptr<const Bytes> bytes;
  std::shared_ptr<const std::vector<int32_t>> places;  // of those that are counted, if others are in memory too

  // Takes experts whose description and parts are under `prefix` in a file.
  static Experts of_file(const PackedFile& file, const std::string& prefix);
  // Their shape holds no more than what computing needs, and their formats are null.
  static Experts of_given(const GivenExperts& given);
  static Experts of_arrays(const mxfp4moe_experts_arrays& arrays, int num_threads);

  int64_t count() const { return layer.num_experts; }
  // The experts at these places among those that are counted, in the same memory.
  Experts select(const std::vector<int32_t>& chosen) const;

  void compute(const Call& call, ActivationFormat format, MoeProblem problem) const;
};

struct Linear {
  const Format* format = nullptr;
  MatrixShape shape{};
  PackedMatrix weight{};
  int64_t num_bytes = 0;
  std::shared_ptr<const Bytes> bytes;

  static Linear of_file(const PackedFile& file, const std::string& prefix);
  static Linear of_arrays(const mxfp4moe_linear_arrays& arrays, int num_threads);

  // A call whose sizes have been checked.
  struct Problem {
    Rows hidden_states, out;
    int64_t num_tokens;
    ActivationFormat format = ActivationFormat::kBFloat16;
  };
  void compute(const Call& call, const Problem& problem) const;
};

}  // namespace mxfp4moe::capi

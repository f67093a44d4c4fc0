// Packed experts and matrices: what they are, and their bytes. They do not change.
#pragma once

#include <memory>

#include "capi/formats.h"
#include "capi/packed_file.h"
#include "moe/problem.h"
#include "packing/storage.h"

namespace mxfp4moe::capi {

struct Experts {
  const Format* format = nullptr;
  StorageShape shape{};
  PackedLayer layer{};
  int64_t num_bytes = 0;
  std::shared_ptr<const Bytes> bytes;

  // Those whose description and parts are under `prefix` in a file.
  static Experts of_file(const PackedFile& file, const std::string& prefix);
  // Of their shape, no more is known than what computing needs; `format` is null.
  static Experts of_given(const GivenExperts& given);
  static Experts of_arrays(const mxfp4moe_experts_arrays& arrays, int num_threads);

  void compute(const Call& call, MoeProblem problem) const;
};

struct Linear {
  const Format* format = nullptr;
  MatrixShape shape{};
  PackedMatrix weight{};
  int64_t num_bytes = 0;
  std::shared_ptr<const Bytes> bytes;

  static Linear of_file(const PackedFile& file, const std::string& prefix);
  static Linear of_arrays(const mxfp4moe_linear_arrays& arrays, int num_threads);

  void compute(const Call& call, const Rows& hidden_states, const Rows& out, int64_t num_tokens) const;
};

}  // namespace mxfp4moe::capi

#include "decoder/router.h"

#include <cstring>

#include "formats/bf16.h"
#include "linear/rms_norm.h"
#include "memory/workspace.h"
#include "threads/split.h"

namespace mxfp4moe {

Status route_normalized(const KernelTable& kernels, const Router& router, const RouterStep& step, int num_threads) {
  const int64_t tokens = step.num_tokens, k = router.hidden_size, n = router.weight.shape.num_rows;
  if (tokens == 0) return Status::kOk;
  float *exact = nullptr, *sums = nullptr;
  uint16_t* terms = nullptr;  // the first numbers of all tokens, then the second ones
  const auto take = [&](Arena arena) {
    exact = arena.take<float>(tokens * k);
    terms = arena.take<uint16_t>(2 * tokens * k);
    sums = arena.take<float>(2 * tokens * n);
    return arena.used();
  };
  const Workspace workspace(take(Arena(nullptr)));
  if (workspace.data() == nullptr) return Status::kOutOfMemory;
  take(Arena(workspace.data()));

  const Rows read{reinterpret_cast<uint8_t*>(const_cast<float*>(step.residual)), k * 4, DType::kFloat32};
  const Rows normalized{reinterpret_cast<uint8_t*>(exact), k * 4, DType::kFloat32};
  rms_norm({read, normalized, tokens, k, router.norm, router.norm_epsilon}, num_threads);
  split_units(tokens, k, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * k; i < end * k; ++i) {
      terms[i] = f32_to_bf16(exact[i]);
      terms[tokens * k + i] = f32_to_bf16(exact[i] - bf16_to_f32(terms[i]));
    }
    std::memcpy(step.rows + begin * k, terms + begin * k, static_cast<size_t>((end - begin) * k) * 2);
  });
  const LinearProblem problem{router.weight.shape,
                              router.weight.weight,
                              {reinterpret_cast<uint8_t*>(terms), k * 2, DType::kBFloat16},
                              {reinterpret_cast<uint8_t*>(sums), n * 4, DType::kFloat32},
                              2 * tokens};
  const Status status = linear(kernels, problem, num_threads);
  if (status != Status::kOk) return status;
  split_units(tokens, n, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        const float sum = sums[t * n + i] + sums[(tokens + t) * n + i];
        const float* bias = router.weight.weight.bias;
        step.logits[t * n + i] = bias == nullptr ? sum : sum - bias[i];
      }
    }
  });
  return Status::kOk;
}

}  // namespace mxfp4moe

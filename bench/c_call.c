/* What a call of the C library costs beside its kernels: the time of the smallest call there is, of which nearly all is
 * that. Prints the best of many, in microseconds, on one thread.
 *
 *   cc -O2 bench/c_call.c $(mxfp4moe config --cflags --libs) -o build/c_call && build/c_call */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <mxfp4moe.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int failed(void) {
  fprintf(stderr, "%s\n", mxfp4moe_last_error());
  return 1;
}

int main(void) {
  enum { SIZE = 32, CALLS = 1000 };
  static uint8_t w13[2 * SIZE * SIZE / 2], w13_scales[2 * SIZE], w2[SIZE * SIZE / 2], w2_scales[SIZE];
  static float hidden[SIZE], out[SIZE], weights[1] = {1};
  static int32_t ids[1];
  mxfp4moe_experts_arrays arrays;
  memset(&arrays, 0, sizeof(arrays));
  arrays.struct_size = sizeof(arrays);
  arrays.format = MXFP4MOE_FORMAT_MXFP4;
  arrays.num_experts = 1;
  arrays.hidden_size = arrays.intermediate_size = SIZE;
  arrays.w13 = (mxfp4moe_array){w13, sizeof(w13), MXFP4MOE_DTYPE_UINT8};
  arrays.w13_scales = (mxfp4moe_array){w13_scales, sizeof(w13_scales), MXFP4MOE_DTYPE_UINT8};
  arrays.w2 = (mxfp4moe_array){w2, sizeof(w2), MXFP4MOE_DTYPE_UINT8};
  arrays.w2_scales = (mxfp4moe_array){w2_scales, sizeof(w2_scales), MXFP4MOE_DTYPE_UINT8};
  mxfp4moe_experts* experts = NULL;
  if (mxfp4moe_pack_experts(&arrays, NULL, &experts) != MXFP4MOE_OK) return failed();

  mxfp4moe_fused_experts_args args;
  memset(&args, 0, sizeof(args));
  args.struct_size = sizeof(args);
  args.hidden_states = hidden;
  args.out = out;
  args.topk_weights = weights;
  args.topk_ids = ids;
  args.num_tokens = args.top_k = 1;
  mxfp4moe_options options = {sizeof(options), 1, MXFP4MOE_ISA_BEST, NULL, NULL};
  double best = 1e9;
  for (int round = 0; round < 200; ++round) {
    const double begin = seconds();
    for (int i = 0; i < CALLS; ++i) {
      if (mxfp4moe_fused_experts(experts, &args, &options) != MXFP4MOE_OK) return failed();
    }
    const double each = (seconds() - begin) / CALLS;
    if (each < best) best = each;
  }
  printf("%.2f us a call\n", 1e6 * best);
  mxfp4moe_close_experts(experts);
  return 0;
}

/* Opens a packed layer and computes it for one token: layer FILE
 *
 *   cc layer.c $(python -m mxfp4moe config --cflags --libs) -o layer */
#include <mxfp4moe.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, mxfp4moe_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: layer FILE\n");
    return 2;
  }
  if (mxfp4moe_abi_version() != MXFP4MOE_ABI_VERSION) {
    fprintf(stderr, "the library is of another version than the header\n");
    return 1;
  }
  mxfp4moe_layer* layer = NULL;
  if (mxfp4moe_open_layer(argv[1], 1, NULL, &layer)) return failed(argv[1]);

  mxfp4moe_layer_info info = {.struct_size = sizeof(info)};
  if (mxfp4moe_get_layer_info(layer, &info)) return failed("info");
  const size_t size = (size_t)info.hidden_size;
  float* x = malloc(2 * size * sizeof(float));
  if (x == NULL) return failed("malloc");
  for (size_t i = 0; i < size; ++i) x[i] = 1.0f;

  const mxfp4moe_options options = {.struct_size = sizeof(options), .num_threads = 2};
  const mxfp4moe_layer_args args = {
      .struct_size = sizeof(args), .hidden_states = x, .out = x + size, .num_tokens = 1};
  if (mxfp4moe_apply_layer(layer, &args, &options)) return failed("apply");
  printf("%.9g %.9g\n", x[size], x[2 * size - 1]);

  free(x);
  mxfp4moe_close_layer(layer);
  return 0;
}

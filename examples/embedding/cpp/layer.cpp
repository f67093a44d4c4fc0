// Opens a packed layer and computes it for one token: layer FILE
#include <cstdio>
#include <exception>
#include <mxfp4moe.hpp>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: layer FILE\n");
    return 2;
  }
  try {
    const mxfp4moe::Layer layer = mxfp4moe::Layer::open(argv[1], true);
    const std::vector<float> x(static_cast<std::size_t>(layer.info().hidden_size), 1.0f);
    std::vector<float> y(x.size());
    layer(mxfp4moe::Span<const float>(x), mxfp4moe::Span<float>(y));
    std::printf("%.9g %.9g\n", y.front(), y.back());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

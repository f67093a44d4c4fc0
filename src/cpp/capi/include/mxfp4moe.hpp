// mxfp4moe.h for C++17: handles that close themselves, spans, and errors as exceptions.
#ifndef MXFP4MOE_HPP
#define MXFP4MOE_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "mxfp4moe.h"

namespace mxfp4moe {

// A call that failed; its status is one of MXFP4MOE_*.
class Error : public std::runtime_error {
 public:
  Error(mxfp4moe_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  mxfp4moe_status status() const noexcept { return status_; }

 private:
  mxfp4moe_status status_;
};

inline void check(mxfp4moe_status status) {
  if (status == MXFP4MOE_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status != MXFP4MOE_OK) throw Error(status, mxfp4moe_last_error());
}

// Consecutive values that somebody else owns, as std::span of C++20; made of any container with data() and size().
template <class T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <class Container, class = decltype(static_cast<T*>(std::declval<Container&>().data()))>
  constexpr Span(Container&& container) noexcept : data_(container.data()), size_(container.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// The bits of a bfloat16 number and of a float16 number.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class T>
constexpr std::int32_t dtype_of() noexcept {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, float>) return MXFP4MOE_DTYPE_FLOAT32;
  if constexpr (std::is_same_v<U, Float16>) return MXFP4MOE_DTYPE_FLOAT16;
  if constexpr (std::is_same_v<U, BFloat16>) return MXFP4MOE_DTYPE_BFLOAT16;
  if constexpr (std::is_same_v<U, double>) return MXFP4MOE_DTYPE_FLOAT64;
  if constexpr (std::is_same_v<U, std::uint8_t>) return MXFP4MOE_DTYPE_UINT8;
  if constexpr (std::is_same_v<U, std::int8_t>) return MXFP4MOE_DTYPE_INT8;
  if constexpr (std::is_same_v<U, std::int32_t>) return MXFP4MOE_DTYPE_INT32;
  return -1;
}

// An array of mxfp4moe.h; bytes of float8 numbers say their dtype.
template <class T>
mxfp4moe_array array(Span<const T> values, std::int32_t dtype = dtype_of<T>()) noexcept {
  return {values.data(), values.size() * sizeof(T), dtype};
}
template <class Container>
mxfp4moe_array array(const Container& values) noexcept {
  using T = std::remove_reference_t<decltype(*values.data())>;
  return {values.data(), values.size() * sizeof(T), dtype_of<T>()};
}
template <class Container>
mxfp4moe_array array(const Container& values, std::int32_t dtype) noexcept {
  return {values.data(), values.size() * sizeof(*values.data()), dtype};
}

// A structure of mxfp4moe.h with its size, all else 0.
template <class T>
T make() noexcept {
  T result{};
  result.struct_size = sizeof(T);
  return result;
}

inline mxfp4moe_options options(std::int32_t num_threads = 0, std::int32_t isa = MXFP4MOE_ISA_BEST) noexcept {
  mxfp4moe_options result = make<mxfp4moe_options>();
  result.num_threads = num_threads;
  result.isa = isa;
  return result;
}

namespace detail {

inline void check_size(const char* name, std::size_t got, std::int64_t rows, std::int64_t columns) {
  const bool fits = columns == 0 || rows <= std::numeric_limits<std::int64_t>::max() / columns;
  if (rows < 0 || !fits || got != static_cast<std::size_t>(rows * columns)) {
    throw Error(MXFP4MOE_INVALID_ARGUMENT,
                std::string(name) + ": expected " + std::to_string(rows) + " x " + std::to_string(columns) +
                    " values, got " + std::to_string(got));
  }
}

// A handle that closes itself.
template <class T, void (*Close)(T*)>
class Handle {
 public:
  const T* get() const noexcept { return handle_.get(); }

 protected:
  explicit Handle(T* handle) noexcept : handle_(handle) {}

 private:
  struct Closer {
    void operator()(T* handle) const noexcept { Close(handle); }
  };
  std::unique_ptr<T, Closer> handle_;
};

template <class T, class Open>
T* opened(Open&& open) {
  T* handle = nullptr;
  check(open(&handle));
  return handle;
}

}  // namespace detail

// Packed experts. `Options` of a call may be null.
class Experts : public detail::Handle<mxfp4moe_experts, mxfp4moe_close_experts> {
 public:
  static Experts pack(const mxfp4moe_experts_arrays& arrays, const mxfp4moe_options* options = nullptr) {
    return Experts(detail::opened<mxfp4moe_experts>(
        [&](mxfp4moe_experts** handle) { return mxfp4moe_pack_experts(&arrays, options, handle); }));
  }
  static Experts open(const std::string& path, bool verify = false, const mxfp4moe_options* options = nullptr) {
    return Experts(detail::opened<mxfp4moe_experts>(
        [&](mxfp4moe_experts** handle) { return mxfp4moe_open_experts(path.c_str(), verify, options, handle); }));
  }

  mxfp4moe_experts_info info() const {
    auto result = make<mxfp4moe_experts_info>();
    check(mxfp4moe_get_experts_info(get(), &result));
    return result;
  }

  // Tokens [num_tokens][hidden_size], weights and ids [num_tokens][top_k]; `args` says the rest, that `out` is
  // [num_tokens][top_k][hidden_size] too.
  template <class In, class Out>
  void operator()(Span<const In> hidden_states, Span<const float> topk_weights, Span<const std::int32_t> topk_ids,
                  Span<Out> out, mxfp4moe_fused_experts_args args = make<mxfp4moe_fused_experts_args>(),
                  const mxfp4moe_options* options = nullptr) const {
    const std::int64_t size = info().hidden_size;
    args.num_tokens = static_cast<std::int64_t>(hidden_states.size()) / size;
    args.top_k = args.num_tokens == 0 ? 0 : static_cast<std::int64_t>(topk_ids.size()) / args.num_tokens;
    detail::check_size("hidden_states", hidden_states.size(), args.num_tokens, size);
    detail::check_size("out", out.size(), args.num_tokens * (args.uncombined ? args.top_k : 1), size);
    detail::check_size("topk_ids", topk_ids.size(), args.num_tokens, args.top_k);
    detail::check_size("topk_weights", topk_weights.size(), args.num_tokens, args.top_k);
    args.hidden_states = hidden_states.data();
    args.hidden_states_dtype = dtype_of<In>();
    args.out = out.data();
    args.out_dtype = dtype_of<Out>();
    args.topk_weights = topk_weights.data();
    args.topk_ids = topk_ids.data();
    check(mxfp4moe_fused_experts(get(), &args, options));
  }

 private:
  using Handle::Handle;
};

// A packed matrix and its bias.
class Linear : public detail::Handle<mxfp4moe_linear, mxfp4moe_close_linear> {
 public:
  static Linear pack(const mxfp4moe_linear_arrays& arrays, const mxfp4moe_options* options = nullptr) {
    return Linear(detail::opened<mxfp4moe_linear>(
        [&](mxfp4moe_linear** handle) { return mxfp4moe_pack_linear(&arrays, options, handle); }));
  }
  static Linear open(const std::string& path, bool verify = false, const mxfp4moe_options* options = nullptr) {
    return Linear(detail::opened<mxfp4moe_linear>(
        [&](mxfp4moe_linear** handle) { return mxfp4moe_open_linear(path.c_str(), verify, options, handle); }));
  }

  mxfp4moe_linear_info info() const {
    auto result = make<mxfp4moe_linear_info>();
    check(mxfp4moe_get_linear_info(get(), &result));
    return result;
  }

  template <class In, class Out>
  void operator()(Span<const In> hidden_states, Span<Out> out, const mxfp4moe_options* options = nullptr) const {
    (*this)(hidden_states, out, make<mxfp4moe_linear_args>(), options);
  }
  template <class In, class Out>
  void operator()(Span<const In> hidden_states, Span<Out> out, mxfp4moe_linear_args args,
                  const mxfp4moe_options* options = nullptr) const {
    const mxfp4moe_linear_info sizes = info();
    args.num_tokens = static_cast<std::int64_t>(hidden_states.size()) / sizes.num_columns;
    detail::check_size("hidden_states", hidden_states.size(), args.num_tokens, sizes.num_columns);
    detail::check_size("out", out.size(), args.num_tokens, sizes.num_rows);
    args.hidden_states = hidden_states.data();
    args.hidden_states_dtype = dtype_of<In>();
    args.out = out.data();
    args.out_dtype = dtype_of<Out>();
    check(mxfp4moe_apply_linear(get(), &args, options));
  }

 private:
  using Handle::Handle;
};

// A mixture-of-experts layer.
class Layer : public detail::Handle<mxfp4moe_layer, mxfp4moe_close_layer> {
 public:
  static Layer open(const std::string& path, bool verify = false, const mxfp4moe_options* options = nullptr) {
    return Layer(detail::opened<mxfp4moe_layer>(
        [&](mxfp4moe_layer** handle) { return mxfp4moe_open_layer(path.c_str(), verify, options, handle); }));
  }
  static Layer open_slice(const std::string& path, Span<const std::int64_t> expert_ids, bool verify = false,
                          const mxfp4moe_options* options = nullptr) {
    const auto count = static_cast<std::int64_t>(expert_ids.size());
    return Layer(detail::opened<mxfp4moe_layer>([&](mxfp4moe_layer** handle) {
      return mxfp4moe_open_layer_slice(path.c_str(), verify, expert_ids.data(), count, options, handle);
    }));
  }

  mxfp4moe_layer_info info() const {
    auto result = make<mxfp4moe_layer_info>();
    check(mxfp4moe_get_layer_info(get(), &result));
    return result;
  }

  // `args` says what only some layers read.
  template <class In, class Out>
  void operator()(Span<const In> hidden_states, Span<Out> out,
                  mxfp4moe_layer_args args = make<mxfp4moe_layer_args>(),
                  const mxfp4moe_options* options = nullptr) const {
    const std::int64_t size = info().hidden_size;
    args.num_tokens = static_cast<std::int64_t>(hidden_states.size()) / size;
    detail::check_size("hidden_states", hidden_states.size(), args.num_tokens, size);
    detail::check_size("out", out.size(), args.num_tokens, size);
    args.hidden_states = hidden_states.data();
    args.hidden_states_dtype = dtype_of<In>();
    args.out = out.data();
    args.out_dtype = dtype_of<Out>();
    check(mxfp4moe_apply_layer(get(), &args, options));
  }

 private:
  using Handle::Handle;
};

}  // namespace mxfp4moe

#endif

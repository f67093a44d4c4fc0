// Computes the activation of plain arrays, which are not sums of panels. Included inside the own namespace of the
// lanes, after activation.h.

// What store_pair needs; there is nothing to store for the second of two panels.
struct ValuesEpilogue {
  const ActivationArgs& args;

  template <class Functor>
  void store_panel(int first) const {
    if (first != 0) return;
    constexpr int kInputs = Functor::kInputs;
    const ActivationParameters parameters(args.activation);
    const float* inputs[] = {kInputs == 2 ? args.gate : args.up, args.up};
    for (int64_t i = 0; i < args.count; i += kPanelRows) {
      const int64_t left = args.count - i, n = left < kPanelRows ? left : kPanelRows;
      const size_t bytes = static_cast<size_t>(n) * sizeof(float);
      float values[kPanelRows] = {};
      F32 x[kInputs];
      for (int p = 0; p < kInputs; ++p) {
        std::memcpy(values, inputs[p] + i, bytes);
        x[p] = load(values);
      }
      store(values, activate<Functor>(x, parameters));
      std::memcpy(args.out + i, values, bytes);
    }
  }
};

inline void activate_values(const ActivationArgs& args) { with_activation(args.activation.kind, ValuesEpilogue{args}); }

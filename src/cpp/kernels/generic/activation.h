// The activations. Each is a functor that computes the intermediate, in float32 over sixteen lanes, from gate and up,
// or from up alone if experts have no gate. Included inside a kernel table's own namespace, after math.h.

struct Gated {
  static constexpr int kInputs = 2;
};
struct Ungated {
  static constexpr int kInputs = 1;
};

// What a functor takes beside these: the fields of Activation, ready for use.
struct ActivationParameters {
  explicit ActivationParameters(const Activation& a)
      : alpha(a.alpha), limit(a.limit), high(broadcast(a.limit)), low(broadcast(-a.limit)) {}

  // The clamps, which an infinite limit switches off. The limit stands first because min and max return their second
  // operand if it is NaN.
  F32 below(F32 x) const { return min(high, x); }
  F32 within(F32 x) const { return max(low, min(high, x)); }

  float alpha, limit;
  F32 high, low;
};

inline F32 logistic_times(F32 g, F32 negated_argument) { return div(g, add(broadcast(1.0f), exp(negated_argument))); }

inline F32 silu(F32 g) { return logistic_times(g, sub(broadcast(0.0f), g)); }

// Computes limit tanh(x / limit). Where x is so small that this rounds to x, it is x itself; so it is for every x if
// the limit is infinite.
inline F32 soft_clamp(F32 x, float limit) {
  const F32 clamped = mul(broadcast(limit), tanh(div(x, broadcast(limit))));
  return select_less(broadcast(limit * 0x1p-12f), abs(x), clamped, x);
}

// The activation of gate and up that are clamped first.
template <class Product>
struct Clamped : Gated {
  static F32 apply(F32 gate, F32 up, const ActivationParameters& p) {
    return Product::apply(p.below(gate), p.within(up), p);
  }
};

struct Silu {
  static F32 apply(F32 gate, F32 up, const ActivationParameters&) { return mul(silu(gate), up); }
};

struct SwigluOai {
  static F32 apply(F32 gate, F32 up, const ActivationParameters& p) {
    return mul(logistic_times(gate, mul(gate, broadcast(-p.alpha))), add(up, broadcast(1.0f)));
  }
};

struct Gelu {
  static F32 apply(F32 gate, F32 up, const ActivationParameters&) {
    const F32 tail = mul(broadcast(0.5f), erfc_nonnegative(mul(abs(gate), broadcast(0.70710678f))));
    const F32 cdf = select_less(gate, broadcast(0.0f), tail, sub(broadcast(1.0f), tail));
    return mul(mul(gate, cdf), up);
  }
};

struct GeluTanh {
  static F32 apply(F32 gate, F32 up, const ActivationParameters&) {
    // 1/2 (1 + tanh(v)) = logistic(2 v), v = sqrt(2 / pi) (g + 0.044715 g^3)
    const F32 cubic =
        mul_add(mul(gate, gate), broadcast(-2.0f * 0.79788456f * 0.044715f), broadcast(-2.0f * 0.79788456f));
    return mul(logistic_times(gate, mul(gate, cubic)), up);
  }
};

struct SiluClamp : Gated {
  static F32 apply(F32 gate, F32 up, const ActivationParameters& p) { return mul(p.below(silu(gate)), p.within(up)); }
};

struct Situ : Gated {
  static F32 apply(F32 gate, F32 up, const ActivationParameters& p) {
    const F32 soft_gate = soft_clamp(gate, p.alpha);
    return mul(logistic_times(soft_gate, sub(broadcast(0.0f), gate)), soft_clamp(up, p.limit));
  }
};

struct Relu2 : Ungated {
  static F32 apply(F32 up, const ActivationParameters& p) {
    const F32 positive = max(broadcast(0.0f), p.within(up));
    return mul(positive, positive);
  }
};

template <class Functor>
inline F32 activate(const F32 (&x)[Functor::kInputs], const ActivationParameters& p) {
  if constexpr (Functor::kInputs == 2) {
    return Functor::apply(x[0], x[1], p);
  } else {
    return Functor::apply(x[0], p);
  }
}

// Stores the intermediates of the sums of a pair of panels: sixteen of gate and up, or twice sixteen where there is no
// gate. `epilogue.template store_panel<Functor>(first)` stores those of the panel `first` of the pair and those after
// it. This is a function of its own, so that the code of the GEMM does not depend on how many activations there are.
template <class Functor, class Epilogue>
MXFP4MOE_NOINLINE void store_pair(const Epilogue& epilogue) {
  for (int first = 0; first < 2; first += Functor::kInputs) epilogue.template store_panel<Functor>(first);
}

// Calls the epilogue with the functor that `kind` names.
template <class Epilogue>
inline void with_activation(ActivationKind kind, const Epilogue& epilogue) {
  switch (kind) {
    case ActivationKind::kSilu: store_pair<Clamped<Silu>>(epilogue); return;
    case ActivationKind::kSwigluOai: store_pair<Clamped<SwigluOai>>(epilogue); return;
    case ActivationKind::kGelu: store_pair<Clamped<Gelu>>(epilogue); return;
    case ActivationKind::kGeluTanh: store_pair<Clamped<GeluTanh>>(epilogue); return;
    case ActivationKind::kSiluClamp: store_pair<SiluClamp>(epilogue); return;
    case ActivationKind::kSitu: store_pair<Situ>(epilogue); return;
    case ActivationKind::kRelu2: store_pair<Relu2>(epilogue); return;
  }
}

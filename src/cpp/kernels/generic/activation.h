// The activations. Each is a functor that computes the intermediate from gate and up, in float32 over sixteen lanes.
// Included inside a kernel table's own namespace, after math.h.

inline F32 logistic_times(F32 g, F32 negated_argument) { return div(g, add(broadcast(1.0f), exp(negated_argument))); }

struct Silu {
  static F32 apply(F32 gate, F32 up, float) { return mul(logistic_times(gate, sub(broadcast(0.0f), gate)), up); }
};

struct SwigluOai {
  static F32 apply(F32 gate, F32 up, float alpha) {
    return mul(logistic_times(gate, mul(gate, broadcast(-alpha))), add(up, broadcast(1.0f)));
  }
};

struct Gelu {
  static F32 apply(F32 gate, F32 up, float) {
    const F32 magnitude = from_bits(bit_and(bits(gate), broadcast_u32(0x7fffffffu)));
    const F32 tail = mul(broadcast(0.5f), erfc_nonnegative(mul(magnitude, broadcast(0.70710678f))));
    const F32 cdf = select_less(gate, broadcast(0.0f), tail, sub(broadcast(1.0f), tail));
    return mul(mul(gate, cdf), up);
  }
};

struct GeluTanh {
  static F32 apply(F32 gate, F32 up, float) {
    // 1/2 (1 + tanh(v)) = logistic(2 v), v = sqrt(2 / pi) (g + 0.044715 g^3)
    const F32 cubic =
        mul_add(mul(gate, gate), broadcast(-2.0f * 0.79788456f * 0.044715f), broadcast(-2.0f * 0.79788456f));
    return mul(logistic_times(gate, mul(gate, cubic)), up);
  }
};

// Both operands are clamped to these; infinity switches the clamp off.
struct ClampLimits {
  F32 high, low;
};
inline ClampLimits clamp_limits(const Activation& a) { return {broadcast(a.limit), broadcast(-a.limit)}; }

// The limit stands first because min and max return their second operand if it is NaN.
template <class Functor>
inline F32 activate(F32 gate, F32 up, const ClampLimits& limits, float alpha) {
  return Functor::apply(min(limits.high, gate), max(limits.low, min(limits.high, up)), alpha);
}

// Calls `body.template run<Functor>()` with the functor that `kind` names.
template <class Body>
inline void with_activation(ActivationKind kind, Body& body) {
  switch (kind) {
    case ActivationKind::kSilu: body.template run<Silu>(); return;
    case ActivationKind::kSwigluOai: body.template run<SwigluOai>(); return;
    case ActivationKind::kGelu: body.template run<Gelu>(); return;
    case ActivationKind::kGeluTanh: body.template run<GeluTanh>(); return;
  }
}

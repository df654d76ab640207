// Activations of inference, in vectors; included once for each instruction set.

inline Lanes clamp(Lanes x, float low, float high) {
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
}
inline Lanes sigmoid_of(Lanes x) {
    const Lanes e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : splat(1.0f)) / (1.0f + e);
}

inline Lanes activate(Lanes x, Activation activation) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::relu: return rectify(x);
        case Activation::relu6: return clamp(x, 0.0f, 6.0f);
        case Activation::silu: return silu_of(x);
        case Activation::gelu: return gelu_of(x);
        case Activation::hardswish: return x * clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
        case Activation::hardsigmoid: return clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
        case Activation::sigmoid: return sigmoid_of(x);
        case Activation::tanh: return 2.0f * sigmoid_of(2.0f * x) - 1.0f;
    }
    return x;
}

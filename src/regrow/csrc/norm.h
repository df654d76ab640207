// Batch norm over batch tiles, with what surrounds it: y = relu(scale x + shift + residual), channel by channel.
#pragma once

#include "tiles.h"

namespace regrow {

// One channel of one tile. Zeros are written around the pixels; lanes past the batch may get anything.
template <class T>
struct Norm {
    const T* x;
    const T* residual; // or null
    T* y;
    const T* next; // as x, what is read next and fetched meanwhile, or null
    T scale, shift;
    bool relu;
    bool large; // more than the caches hold: what is written goes past them
};

// Its gradients. g is `gradient` where the ReLU let it through, if there was one.
template <class T>
struct NormBackward {
    const T* gradient; // of y
    const T* x;
    const T* y;      // tells what the ReLU let through; null: scale x + shift tells
    const T* passed; // the gradient of another use of x, or null
    T* residual;     // gets g, or null
    T* input;        // gets a g + b (x - mean) + c + passed
    const T *next_gradient, *next_x; // what is read next and fetched meanwhile, or null
    T scale, shift, mean;
    T a, b, c;
    bool given; // the statistics, not computed: b and c are 0, and x says nothing even where it is nan
    bool relu;
    bool large; // as above
};

struct Sums { double first, second; };

template <class T>
struct NormKernels {
    // sums of x - pivot and of its square, of one channel of tile t
    Sums (*moments)(const T* x, T pivot, const Geometry&, int64_t t);
    void (*forward)(const Norm<T>&, const Geometry&);
    // sums of g and of g (x - mean); writes `residual`
    Sums (*sums)(const NormBackward<T>&, const Geometry&, int64_t t);
    // writes `input`
    void (*backward)(const NormBackward<T>&, const Geometry&);
};

} // namespace regrow

// Pooling over batch tiles.
#pragma once

#include "tiles.h"

namespace regrow {

// Windows over an image, as torch places them; clipped to the image, with padding told apart only by what an average
// is divided by.
struct Pool {
    Geometry input, output;
    int64_t kernel_height, kernel_width, stride_height, stride_width, pad_height, pad_width;
    bool count_pad;  // an average is over the padding too
    int64_t divisor; // an average is divided by this, unless it is 0
};

// Each for one channel of one tile. Outputs' borders are not touched.
template <class T>
struct PoolKernels {
    void (*max)(const T* x, T* y, const Pool&);
    void (*max_backward)(const T* x, const T* y, const T* gradient, T* input_gradient, const Pool&); // adds
    void (*average)(const T* x, T* y, const Pool&);
    void (*average_backward)(const T* gradient, T* input_gradient, const Pool&); // adds
    void (*mean)(const T* x, T* means, const Geometry&);                         // of each of 16 images
    void (*mean_backward)(const T* gradient, T* input_gradient, const Geometry&);
};

} // namespace regrow

// The table of kernels that each instruction set fills in.
#pragma once

#include <cstdint>
#include <utility>

#include "conv.h"
#include "infer.h"
#include "linear.h"
#include "norm.h"
#include "pool.h"
#include "scan.h"
#include "tiles.h"

namespace regrow {

template <class T>
struct Kernels {
    int64_t forward_tile;  // batch elements that the kernel holds in registers
    int64_t backward_tile;
    int64_t values_tile; // of a backward pass without the input's gradient
    // rows [begin, end) of tile `tile`; cursor: room for end - begin + 1 numbers
    void (*forward)(const Forward<T>&, int64_t begin, int64_t end, int64_t tile, int32_t* cursor);
    // columns [begin, end), all tiles; cursor: room for end - begin + 1 numbers
    void (*backward)(const Backward<T>&, int64_t begin, int64_t end, int32_t* cursor);
    void (*backward_values)(const Backward<T>&, int64_t begin, int64_t end, int32_t* cursor); // without the input's gradient
    // features [begin, end): out = gradient x derivative of the activation, bias = sums of out over the batch
    void (*finish)(const Finish<T>&, int64_t begin, int64_t end);
    // features [begin, end)
    void (*lay_out)(const Laying<T>&, int64_t begin, int64_t end);
    ConvKernels<T> conv;
    // channels [begin, end) of one tile, without its border
    void (*tile)(const Tiling<T>&, int64_t tile, int64_t begin, int64_t end);
    void (*untile)(const Tiling<T>&, int64_t tile, int64_t begin, int64_t end);
    // zeros where some channels have no pixels (border and rounding lines); large: past the caches
    void (*clear_borders)(const Geometry&, T* channel, int64_t channels, bool large);
    NormKernels<T> norm;
    PoolKernels<T> pool;
    ScanKernels<T> scan;
};

struct Isa {
    const char* name;
    Kernels<float> f32;
    Kernels<double> f64;
    const infer::Kernels* infer;
    template <class T> const Kernels<T>& kernels() const {
        if constexpr (sizeof(T) == 4) return f32;
        else return f64;
    }
};

namespace avx512 {
extern const Isa isa;
}
namespace avx2 {
extern const Isa isa;
}
namespace baseline {
extern const Isa isa;
}

const Isa& isa(); // the best that the machine has, or the one that is forced

} // namespace regrow

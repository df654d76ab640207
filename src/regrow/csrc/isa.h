// One instruction set's kernels: everything in its own namespace, and the table of them.
// No function of the standard library is called in here: it could be compiled for this instruction set and then
// be taken by the linker for all.

namespace regrow {
namespace REGROW_ISA {

#include "simd.h"
#include "nonlinear.h"
#include "transpose.h"

#include "conv_patches.h"
#include "planes.h"

#include "conv_backward.h"
#include "conv_forward.h"
#include "finish_gradient.h"
#include "lay_out.h"
#include "linear_backward.h"
#include "linear_forward.h"
#include "norm_planes.h"
#include "pool_planes.h"
#include "scan_product.h"
#include "scan_cells.h"
#include "tiles_copy.h"

#define REGROW_TEXT(x) #x
#define REGROW_NAME(x) REGROW_TEXT(x)

template <class T>
constexpr Kernels<T> table{
    FORWARD_VECTORS * LANES<T>,
    BACKWARD_VECTORS * LANES<T>,
    VALUES_VECTORS * LANES<T>,
    &forward<T, FORWARD_VECTORS>,
    &backward<T, true>,
    &backward<T, false>,
    &finish<T>,
    &lay_out<T>,
    {LANES<T>, PIXELS<T, CONV_FORWARD_VECTORS>, PIXELS<T, CONV_BACKWARD_VECTORS>, &conv_forward<T>, &conv_backward<T>,
     &conv_reduce<T>},
    &copy_tiles<T, true>,
    &copy_tiles<T, false>,
    &clear_borders<T>,
    {&norm_moments<T>, &norm_forward<T>, &norm_sums<T>, &norm_backward<T>},
    {&pool_max<T>, &pool_max_backward<T>, &pool_average<T>, &pool_average_backward<T>, &pool_mean<T>,
     &pool_mean_backward<T>},
    {&scan<ScanForward<T>, T>, &scan<ScanBackward<T>, T>},
};

extern const infer::Kernels infer_table; // infer_isa.h

extern const Isa isa{REGROW_NAME(REGROW_ISA), table<float>, table<double>, &infer_table};

} // namespace REGROW_ISA
} // namespace regrow

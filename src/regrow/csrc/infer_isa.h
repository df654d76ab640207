// One instruction set's kernels for inference, in its own namespace, and the table of them. As in isa.h, no function of the
// standard library is called in here.

namespace regrow {
namespace REGROW_ISA {

#include "simd.h"
#include "nonlinear.h"
#include "transpose.h"

namespace inference {
using namespace regrow::infer;
using infer::Activation;
using infer::Norm;
using infer::Pool;
using infer::Vector;
using Lanes = FloatVector;
constexpr int64_t L = LANES<float>;

#include "infer_activations.h"
#include "infer_conv.h"
#include "infer_int8.h"
#include "infer_vector.h"
#include "infer_planes.h"
#include "infer_attention.h"
} // namespace inference

extern const infer::Kernels infer_table{
    inference::VECTORS * inference::L,
    inference::NORM * inference::L,
    inference::QUERIES * inference::L,
    &inference::conv,
    &inference::int8_conv,
    &inference::dense,
    &inference::vector,
    &inference::map,
    &inference::mean,
    &inference::pool,
    &inference::norm,
    &inference::attention,
    &inference::transpose_matrix,
};

} // namespace REGROW_ISA
} // namespace regrow

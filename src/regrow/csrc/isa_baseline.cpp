// The kernels for whatever the compiler takes as given: SSE2 on x86, NEON on ARM.
#include "kernels.h"

#define REGROW_ISA baseline
#define VECTOR_BYTES 16
#define FORWARD_VECTORS 8
#define BACKWARD_VECTORS 4
#define VALUES_VECTORS 8
#define CONV_FORWARD_VECTORS 8
#define CONV_BACKWARD_VECTORS 4
#include "isa.h"

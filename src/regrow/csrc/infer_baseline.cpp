// The kernels for inference, for what every machine has: SSE2 on x86, NEON on ARM.
#include "kernels.h"

#define REGROW_ISA baseline
#define VECTOR_BYTES 16
#define INFER_VECTORS 8
#include "infer_isa.h"

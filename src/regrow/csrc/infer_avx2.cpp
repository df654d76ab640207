// The kernels for inference, for AVX2 with FMA; 16 registers.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define REGROW_ISA avx2
#define VECTOR_BYTES 32
#define INFER_VECTORS 12
#include "infer_isa.h"
#endif

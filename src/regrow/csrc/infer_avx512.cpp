// The kernels for inference, for AVX-512; 32 registers.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#define REGROW_ISA avx512
#define VECTOR_BYTES 64
#define INFER_VECTORS 13
#include "infer_isa.h"
#endif

// The kernels for AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define REGROW_ISA avx512
#define VECTOR_BYTES 64
#define FORWARD_VECTORS 8
#define BACKWARD_VECTORS 8
#define VALUES_VECTORS 16
#define CONV_FORWARD_VECTORS 12
#define CONV_BACKWARD_VECTORS 12
#include "isa.h"
#endif

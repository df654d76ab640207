// The kernels for AVX2 with FMA; 16 registers.
#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define REGROW_ISA avx2
#define VECTOR_BYTES 32
#define FORWARD_VECTORS 8
#define BACKWARD_VECTORS 4
#define VALUES_VECTORS 8
#define CONV_FORWARD_VECTORS 8
#define CONV_BACKWARD_VECTORS 4
#include "isa.h"
#endif

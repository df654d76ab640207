// Included first into each file of a library that is to run on older systems than the one that compiles it (wheels):
// keeps out of it what glibc and libstdc++ have only had since manylinux_2_28.
#pragma once

#if defined(REGROW_PORTABLE) && defined(__linux__)
#include <cstddef>

#ifdef __GLIBCXX__ // templates are compiled here, not taken from a libstdc++ whose newer ones have new names
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#endif

#ifdef __GLIBC__ // 2.29 has a second one
#if defined(__x86_64__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver exp,exp@GLIBC_2.17");
#endif
#endif
#endif

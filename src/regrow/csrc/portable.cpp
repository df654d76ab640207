// What a library that runs on older systems brings along, because they lack it (portable.h).
#ifdef REGROW_PORTABLE
#include <new>

#pragma GCC visibility push(hidden)
namespace std {
void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); } // libstdc++ has had it since 3.4.29
} // namespace std
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0; // glibc has had it since 2.32; 0: counts are atomic
#pragma GCC visibility pop
#endif

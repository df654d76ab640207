// Ranges of equal length, one for each thread.
#pragma once

#include <algorithm>

#include "torch.h"

namespace regrow {

// So many parts of n things, each of at least `least` of them.
inline int64_t parts_of(int64_t n, int64_t least) {
    return std::clamp<int64_t>(n / least, 1, torch::stable::get_num_threads());
}

// f(part, begin, end) for each of `parts` parts of [0, n), at the same time.
template <class F>
void in_parts(int64_t n, int64_t parts, const F& f) {
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; part++) f(part, n * part / parts, n * (part + 1) / parts);
    });
}

} // namespace regrow

// Memory for the activations that operators make: of large ones it is kept for the next of about that size.
//
// What the system gives it clears and maps page by page, which takes longer than many a kernel that then writes it.
#pragma once

#include "torch.h"

namespace regrow {

// As `empty`, aligned to 64 bytes. For what a step makes and drops; what lasts is better off in memory of its own size.
Tensor empty_buffer(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);

} // namespace regrow

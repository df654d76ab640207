// Values of a masked weight where it has no connection.

#include <atomic>
#include <cstdint>

#include "parallel.h"
#include "torch.h"

namespace regrow {
namespace {

constexpr int64_t SHARE = 1 << 16, BLOCK = 1 << 12; // positions: for a thread at least, between two looks

// Whether any value, given by its bits, is not zero where the mask is 0. The sign is shifted out: -0 is zero too.
template <class Bits>
bool outside_as(const void* values, const uint8_t* mask, int64_t count) {
    const Bits* const bits = static_cast<const Bits*>(values);
    std::atomic<bool> found{false};
    in_parts(count, parts_of(count, SHARE), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end && !found; i += BLOCK) {
            Bits any = 0;
            for (int64_t j = i; j < std::min(end, i + BLOCK); j++) any |= Bits(bits[j] << 1) & Bits(Bits(mask[j]) - 1);
            if (any) found = true;
        }
    });
    return found;
}

// `values` and the boolean `mask` have one shape and the same strides, without gaps.
bool outside(Tensor values, Tensor mask) {
    const int64_t count = values.numel();
    bool alike = values.is_cpu() && values.dim() == mask.dim();
    int64_t reach = 1; // elements from the first to the last
    for (int64_t d = 0; alike && d < values.dim(); d++) {
        alike = values.size(d) == mask.size(d) && (values.size(d) == 1 || values.stride(d) == mask.stride(d));
        reach += (values.size(d) - 1) * values.stride(d);
    }
    STD_TORCH_CHECK(alike && (count == 0 || reach == count),
                    "`values` and `mask` must be laid out alike, without gaps, on the CPU");
    STD_TORCH_CHECK(mask.is_cpu() && mask.scalar_type() == ScalarType::Bool && mask.numel() == count,
                    "`mask` must be boolean, of the values' shape, on the CPU");
    const auto* const active = static_cast<const uint8_t*>(mask.const_data_ptr());
    switch (values.element_size()) {
        case 8: return outside_as<uint64_t>(values.const_data_ptr(), active, count);
        case 4: return outside_as<uint32_t>(values.const_data_ptr(), active, count);
        case 2: return outside_as<uint16_t>(values.const_data_ptr(), active, count);
    }
    STD_TORCH_CHECK(false, "`values` has entries of ", values.element_size(), " bytes");
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) { m.def("outside(Tensor values, Tensor mask) -> bool"); }
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) { m.impl("outside", TORCH_BOX(&regrow::outside)); }

// Which instruction set runs: the best that the machine has, or a lower one that REGROW_ISA or set_isa names.
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"
#include "torch.h"

namespace regrow {
namespace {

// Those that this machine runs, best first.
std::vector<const Isa*> available() {
    std::vector<const Isa*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2_too = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2_too && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512::isa);
    if (avx2_too) found.push_back(&avx2::isa);
#endif
    found.push_back(&baseline::isa);
    return found;
}

const Isa* chosen(const std::string& name) {
    const auto all = available();
    if (name.empty()) return all.front();
    std::string names;
    for (const Isa* each : all) {
        if (name == each->name) return each;
        names += names.empty() ? each->name : std::string(", ") + each->name;
    }
    STD_TORCH_CHECK(false, "REGROW_ISA must be one of ", names, " on this machine, got ", name);
}

const Isa* current = nullptr;

std::string isa_name() { return isa().name; }
void set_isa(std::string name) { current = chosen(name); }

} // namespace

const Isa& isa() {
    if (!current) {
        const char* forced = std::getenv("REGROW_ISA");
        current = chosen(forced ? forced : "");
    }
    return *current;
}

} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("isa() -> str");
    m.def("set_isa(str name) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CompositeExplicitAutograd, m) {
    m.impl("isa", TORCH_BOX(&regrow::isa_name));
    m.impl("set_isa", TORCH_BOX(&regrow::set_isa));
}

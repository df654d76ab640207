#include "buffers.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <mutex>

// torch has had it since 2.11; null in one that is older.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t type,
                int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace regrow {
namespace {

constexpr size_t LEAST = 1 << 20;  // bytes from which on memory is kept
constexpr size_t GRAIN = 64 << 10; // bytes
constexpr size_t HUGE_PAGE = 2 << 20;   // bytes of a huge page
constexpr int64_t KEEP = 1024;     // requests for which memory is kept unused: more than most networks make in a step

struct Region {
    char* data;
    size_t size;
};

// New memory from the system, in huge pages where it has them; null where there is none left.
Region map(size_t size) {
    const size_t room = size + HUGE_PAGE;
    void* const mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return {nullptr, 0};
    char *const begin = static_cast<char*>(mapped), *const end = begin + room;
    char* const data = begin + (HUGE_PAGE - reinterpret_cast<uintptr_t>(begin) % HUGE_PAGE) % HUGE_PAGE;
    if (data > begin) munmap(begin, data - begin);
    munmap(data + size, end - (data + size));
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);
#endif
    return {data, size};
}

// Regions of memory: those that are lent are known by their tensors alone. What has lain unused for `KEEP` requests goes
// back to the system, and what there is beyond one and a half times what was lent at once of late.
class Pool {
public:
    // The pool of the process, which nothing destroys: tensors may outlive what the end of a process does.
    static Pool& only() {
        static Pool* const pool = [] {
            auto* const made = new Pool;
            pthread_atfork([] { only().mutex_.lock(); }, [] { only().mutex_.unlock(); }, [] { only().mutex_.unlock(); });
            return made;
        }();
        return *pool;
    }

    Region take(size_t bytes) {
        const size_t size = (bytes + GRAIN - 1) / GRAIN * GRAIN;
        const std::lock_guard<std::mutex> lock(mutex_);
        now_++;
        Region found = reuse(size);
        if (!found.data) found = map(size);
        if (!found.data) {
            clear();
            found = map(size);
        }
        lent_ += found.size;
        peak_ = std::max(lent_, peak_ - peak_ / (4 * KEEP));
        trim();
        return found;
    }

    void give(Region region) {
        const std::lock_guard<std::mutex> lock(mutex_);
        lent_ -= region.size;
        idle_ += region.size;
        unused_.push_back({region, now_});
        trim();
    }

    void empty() {
        const std::lock_guard<std::mutex> lock(mutex_);
        clear();
        peak_ = lent_;
    }

private:
    struct Unused {
        Region region;
        int64_t since;
    };

    // The smallest that is large enough and by no more than an eighth too large; of several the last one used.
    Region reuse(size_t size) {
        auto best = unused_.end();
        for (auto each = unused_.begin(); each != unused_.end(); ++each) {
            const size_t room = each->region.size;
            if (room >= size && room <= size + size / 8 && (best == unused_.end() || room <= best->region.size)) best = each;
        }
        if (best == unused_.end()) return {nullptr, 0};
        const Region found = best->region;
        unused_.erase(best);
        idle_ -= found.size;
        return found;
    }

    void trim() {
        while (!unused_.empty() && (now_ - unused_.front().since > KEEP || lent_ + idle_ > peak_ + peak_ / 2)) drop_oldest();
    }
    void clear() {
        while (!unused_.empty()) drop_oldest();
    }
    void drop_oldest() {
        const Region oldest = unused_.front().region;
        unused_.pop_front();
        idle_ -= oldest.size;
        munmap(oldest.data, oldest.size);
    }

    std::mutex mutex_;
    std::deque<Unused> unused_; // the longest unused first
    size_t lent_ = 0, idle_ = 0; // bytes
    size_t peak_ = 0;            // the most bytes lent at once, forgotten little by little
    int64_t now_ = 0;            // requests so far
};

#ifdef __SANITIZE_ADDRESS__
constexpr bool POOLED = false; // the sanitizer watches over each buffer on its own
#else
constexpr bool POOLED = true;
#endif

// Of one element of an activation; 0 for what is none.
size_t bytes_of(ScalarType type) {
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : type == ScalarType::BFloat16 ? 2 : 0;
}

} // namespace

Tensor empty_buffer(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
    size_t bytes = bytes_of(type);
    for (const int64_t size : shape) bytes *= size;
    if (!POOLED || bytes < LEAST || !torch_from_blob) return empty(like, shape, type);
    const Region region = Pool::only().take(bytes);
    if (!region.data) return empty(like, shape, type); // which says that there is no memory left

    AtenTensorHandle made;
    const AOTITorchError failed = torch_from_blob(
        region.data, int64_t(shape.size()), shape.begin(), contiguous_strides(shape).data(), 0, code_of(type),
        aoti_torch_device_type_cpu(), -1, &made, aoti_torch_layout_strided(), nullptr, 0,
        [](void* data, void* size) { Pool::only().give({static_cast<char*>(data), reinterpret_cast<size_t>(size)}); },
        reinterpret_cast<void*>(region.size));
    if (failed) Pool::only().give(region);
    STABLE_TORCH_ERROR_CODE_CHECK(failed);
    return Tensor(made);
}

namespace {
void empty_cache() { Pool::only().empty(); }
} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) { m.def("empty_cache() -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CompositeExplicitAutograd, m) {
    m.impl("empty_cache", TORCH_BOX(&regrow::empty_cache));
}

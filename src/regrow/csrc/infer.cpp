// `infer`: runs an inference program, all of it in one call.
#include "infer_steps.h"

#include <chrono>
#include <cstring>
#include <string>

#include "buffers.h"
#include "kernels.h"

namespace regrow::infer {

int64_t threads() { return torch::stable::get_num_threads(); }

const Kernels& kernels() { return *isa().infer; }

Memory::Memory(float* arena, int64_t size, int64_t scratch, const std::vector<Tensor>& constants,
               const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs)
    : arena_(arena), arena_size_(size), scratch_(scratch), constants_(constants) {
    spaces_.push_back({arena, size});
    for (const Tensor& t : inputs) {
        STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == ScalarType::Float,
                        "an input of `infer` must be contiguous float32 on the CPU");
        spaces_.push_back({const_cast<float*>(read<float>(t)), t.numel()});
    }
    for (const Tensor& t : outputs) spaces_.push_back({write<float>(t), t.numel()});
}

float* Memory::find(Place place, int64_t size) const {
    if (place.space == NONE) return nullptr;
    STD_TORCH_CHECK(place.space >= 0 && place.space < int64_t(spaces_.size()), "an inference program names space ",
                    place.space, " of ", spaces_.size());
    const Space& space = spaces_[place.space];
    STD_TORCH_CHECK(place.at >= 0 && size >= 0 && place.at <= space.size && size <= space.size - place.at,
                    "an inference program reads or writes outside of space ", place.space, ": ", size, " floats from ",
                    place.at, " on, of ", space.size);
    return space.data + place.at;
}

const float* Memory::source(Place place, int64_t size) const {
    if (place.space >= NONE) return find(place, size);
    require_sizes({place.at, size});
    return constant<float>(NONE - 1 - place.space, place.at + size, {ScalarType::Float}) + place.at;
}

const void* Memory::find_constant(int64_t index, int64_t size, std::initializer_list<ScalarType> types) const {
    if (index == NONE) return nullptr;
    STD_TORCH_CHECK(index >= 0 && index < int64_t(constants_.size()), "an inference program names constant ", index, " of ",
                    constants_.size());
    const Tensor& t = constants_[index];
    bool right = false;
    for (const ScalarType type : types) right = right || t.scalar_type() == type;
    STD_TORCH_CHECK(right && t.is_cpu() && t.is_contiguous() && t.numel() >= size, "constant ", index,
                    " of an inference program is not what its step needs");
    return t.const_data_ptr();
}

namespace {

// A step's fields, and what the step does.
template <class S>
bool try_step(int64_t kind, const int64_t* fields, int64_t count, const Memory& memory) {
    if (kind != S::KIND) return false;
    STD_TORCH_CHECK(count * int64_t(sizeof(int64_t)) == int64_t(sizeof(S)), "a step of kind ", kind, " has ",
                    sizeof(S) / sizeof(int64_t), " fields, got ", count);
    S step;
    std::memcpy(&step, fields, sizeof step);
    run(step, memory);
    return true;
}

template <class... S>
void run_step(int64_t kind, const int64_t* fields, int64_t count, const Memory& memory) {
    STD_TORCH_CHECK((try_step<S>(kind, fields, count, memory) || ...), "an inference program has a step of kind ", kind,
                    ", which this regrow does not know");
}

// What lies behind a value may be read, though never used: runs of pixels end in whole vectors.
constexpr int64_t SLACK = 64;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// seconds: of each step, or null.
std::vector<Tensor> run_program(const Tensor& program, const std::vector<Tensor>& constants,
                                const std::vector<Tensor>& inputs, const std::vector<int64_t>& shapes,
                                std::vector<double>* seconds) {
    STD_TORCH_CHECK(program.is_cpu() && program.is_contiguous() && program.scalar_type() == ScalarType::Long,
                    "an inference program must be contiguous int64 on the CPU");
    const int64_t* at = read<int64_t>(program);
    const int64_t* const end = at + program.numel();
    Header header;
    STD_TORCH_CHECK(program.numel() * sizeof(int64_t) >= sizeof header, "an inference program is cut short");
    std::memcpy(&header, at, sizeof header);
    at += sizeof header / sizeof(int64_t);
    STD_TORCH_CHECK(header.format == FORMAT && header.arena >= 0 && header.scratch >= 0,
                    "an inference program is of format ", header.format, ", this regrow runs ", FORMAT);

    std::vector<Tensor> outputs;
    for (size_t i = 0; i < shapes.size();) {
        const int64_t dimensions = shapes[i++];
        STD_TORCH_CHECK(dimensions >= 0 && i + dimensions <= shapes.size(), "shapes of an inference program are cut short");
        std::vector<int64_t> strides(dimensions, 1);
        for (int64_t d = dimensions - 1; d > 0; d--) strides[d - 1] = strides[d] * std::max<int64_t>(shapes[i + d], 1);
        AtenTensorHandle made;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dimensions, shapes.data() + i, strides.data(),
                                                               code_of(ScalarType::Float), aoti_torch_device_type_cpu(), -1,
                                                               &made));
        outputs.emplace_back(made);
        i += dimensions;
    }
    const int64_t floats = header.arena + threads() * header.scratch + SLACK;
    const Tensor memory = empty_buffer(program, {floats}, ScalarType::Float);
    const Memory all(write<float>(memory), header.arena, header.scratch, constants, inputs, outputs);
    for (int64_t step = 0; step < header.steps; step++) {
        STD_TORCH_CHECK(end - at >= 2 && at[1] >= 0 && at[1] <= end - at - 2, "an inference program is cut short");
        run_step<ConvStep, DenseStep, VectorStep, CopyStep, MapStep, MeanStep, PoolStep, NormStep, AttentionStep, Int8Step>(
            at[0], at + 2, at[1], all);
        at += 2 + at[1];
        if (seconds) seconds->push_back(now());
    }
    return outputs;
}

std::vector<Tensor> infer(Tensor program, std::vector<Tensor> constants, std::vector<Tensor> inputs,
                          std::vector<int64_t> shapes) {
    return run_program(program, constants, inputs, shapes, nullptr);
}

// The time at the beginning and after each step, in seconds.
Tensor infer_times(Tensor program, std::vector<Tensor> constants, std::vector<Tensor> inputs, std::vector<int64_t> shapes) {
    std::vector<double> times{now()};
    run_program(program, constants, inputs, shapes, &times);
    Tensor found = empty(program, {int64_t(times.size())}, ScalarType::Double);
    std::copy(times.begin(), times.end(), write<double>(found));
    return found;
}

int64_t infer_pixels() { return kernels().pixels; }

} // namespace
} // namespace regrow::infer

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("infer(Tensor program, Tensor[] constants, Tensor[] inputs, int[] shapes) -> Tensor[]");
    m.def("infer_times(Tensor program, Tensor[] constants, Tensor[] inputs, int[] shapes) -> Tensor");
    m.def("infer_pixels() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CompositeExplicitAutograd, m) {
    m.impl("infer", TORCH_BOX(&regrow::infer::infer));
    m.impl("infer_times", TORCH_BOX(&regrow::infer::infer_times));
    m.impl("infer_pixels", TORCH_BOX(&regrow::infer::infer_pixels));
}

// The Python module: packed matrices, layers made of them, and the calls that run a layer.
//
// Tensors come in as addresses: the caller keeps them alive and has checked their shapes and
// dtypes (kernels/cpu/__init__.py). What weights are is checked again here, once for a layer; the blocks
// and slots of a batch are the engine's own and are not.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "backend.h"
#include "pack.h"
#include "weights.h"

namespace nb = nanobind;

namespace dsv2 {
namespace {

using Weights = std::shared_ptr<PackedMatrix>;
using Floats = std::vector<float>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Floats copy_floats(uintptr_t address, size_t count) {
  const float* start = at<const float>(address);
  return address ? Floats(start, start + count) : Floats();
}

const Matrix* matrix_of(const Weights& weights) { return weights ? &weights->matrix : nullptr; }

void expect(const Matrix* m, int count, int rows, int cols, const char* name) {
  if (m == nullptr || m->count != count || m->rows != rows || m->cols != cols) {
    throw std::invalid_argument(std::string(name) + " is missing or misshapen");
  }
}

// Both read the same panels.
void expect_alike(const Matrix* gate, const Matrix* up, const char* names) {
  if (gate->format != up->format) throw std::invalid_argument(std::string(names) + " have two formats");
}

// A layer with everything its pointers point to.
template <class Layer>
struct Owned {
  Layer layer{};
  std::vector<Weights> weights;
  std::vector<Floats> floats;

  const Matrix* keep(const Weights& matrix) {
    if (matrix) weights.push_back(matrix);
    return matrix_of(matrix);
  }
  const float* keep(uintptr_t address, size_t count) {
    if (address == 0) return nullptr;
    floats.push_back(copy_floats(address, count));
    return floats.back().data();
  }
  size_t bytes() const {
    size_t total = 0;
    for (const Weights& w : weights) total += w->matrix.bytes;
    for (const Floats& f : floats) total += f.size() * sizeof(float);
    return total;
  }
};

using OwnedAttention = Owned<AttentionLayer>;
using OwnedMlp = Owned<MlpLayer>;
using OwnedMoe = Owned<MoeLayer>;

// The layers of a model in order, kept for as long as the stack.
struct Stack {
  struct Layer {
    std::shared_ptr<OwnedAttention> attention;
    std::variant<std::shared_ptr<OwnedMlp>, std::shared_ptr<OwnedMoe>> feed;
  };
  std::vector<Layer> layers;

  void add(std::shared_ptr<OwnedAttention> attention, decltype(Layer::feed) feed) {
    layers.push_back({std::move(attention), std::move(feed)});
  }
};

std::vector<const Backend*> backends() {
  std::vector<const Backend*> found;
  for (const Backend* one : {amx_backend(), avx512_bf16_backend(), avx512_backend(), avx2_backend(), scalar_backend()}) {
    if (one != nullptr) found.push_back(one);
  }
  return found;
}

// One instruction set on a team of threads, with the scratch memory of its calls.
class Kernels {
 public:
  Kernels(const std::string& isa, int threads) {
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
    for (const Backend* one : backends()) {
      if (one->name() == isa) backend_ = one;
    }
    if (backend_ == nullptr) throw std::invalid_argument("this processor or build has no " + isa);
    pool_ = std::make_unique<Pool>(threads);
  }

  std::string isa() const { return backend_->name(); }
  int threads() const { return pool_->threads(); }
  size_t scratch_bytes() const { return arena_.most(); }

  Weights pack(int format, int source_format, int count, int rows, int cols, uintptr_t data,
               uintptr_t scales, uintptr_t row_scales, size_t item_stride, size_t row_stride,
               size_t col_stride, size_t item_rows) {
    const nb::gil_scoped_release release;
    auto packed = std::make_shared<PackedMatrix>(static_cast<Format>(format), count, rows, cols);
    const Source source{static_cast<Format>(source_format), count, rows, cols, at<const void>(data),
                        at<const int8_t>(scales), at<const float>(row_scales), item_stride, row_stride,
                        col_stride, item_rows};
    backend_->pack(source, packed->matrix, *pool_);
    return packed;
  }

  // Weights in blocks, with unsigned codes, that `owner` keeps: used where they are, unless this
  // instruction set wants signed ones.
  Weights use(int format, int count, int rows, int cols, uintptr_t codes, uintptr_t scales,
              uintptr_t row_scales, nb::object owner) {
    const Format kind = static_cast<Format>(format);
    if (group_of(kind) == 1) throw std::invalid_argument("only codes are in blocks");
    Source blocks{};
    blocks.data = at<const void>(codes);
    blocks.scales = at<const int8_t>(scales);
    blocks.row_scales = at<const float>(row_scales);
    auto found = std::make_shared<PackedMatrix>(kind, count, rows, cols, blocks, std::move(owner));
    if (kind == Format::kInt4 || backend_->is_unsigned()) return found;
    const nb::gil_scoped_release release;
    auto copy = std::make_shared<PackedMatrix>(kind, count, rows, cols);
    copy_turned(found->matrix, copy->matrix, *pool_);
    return copy;
  }

  void attention(const OwnedAttention& owned, const Batch& batch, int format, size_t token_bytes,
                 uintptr_t cache, uintptr_t x) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    arena_.reset();
    const Cache memory{static_cast<Format>(format), at<uint8_t>(cache), token_bytes};
    backend_->attention(owned.layer, batch, memory, at<float>(x), arena_, *pool_);
  }

  void mlp(const OwnedMlp& owned, int tokens, uintptr_t x) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    arena_.reset();
    backend_->mlp(owned.layer, tokens, at<float>(x), arena_, *pool_);
  }

  void moe(const OwnedMoe& owned, int tokens, uintptr_t x) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    arena_.reset();
    backend_->moe(owned.layer, tokens, at<float>(x), arena_, *pool_);
  }

  // All layers of a stack; `caches` has one address for each.
  void run(const Stack& stack, const Batch& batch, int format, size_t token_bytes,
           const std::vector<uintptr_t>& caches, uintptr_t x) {
    if (caches.size() != stack.layers.size()) throw std::invalid_argument("one cache per layer");
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    for (size_t i = 0; i < caches.size(); ++i) {
      const Stack::Layer& layer = stack.layers[i];
      arena_.reset();
      const Cache memory{static_cast<Format>(format), at<uint8_t>(caches[i]), token_bytes};
      backend_->attention(layer.attention->layer, batch, memory, at<float>(x), arena_, *pool_);
      arena_.reset();
      if (const auto* moe = std::get_if<std::shared_ptr<OwnedMoe>>(&layer.feed)) {
        backend_->moe((*moe)->layer, batch.tokens, at<float>(x), arena_, *pool_);
      } else {
        backend_->mlp(std::get<std::shared_ptr<OwnedMlp>>(layer.feed)->layer, batch.tokens, at<float>(x), arena_,
                      *pool_);
      }
    }
  }

  void linear(const PackedMatrix& weights, uintptr_t norm, float eps, int tokens, uintptr_t x,
              uintptr_t out) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    arena_.reset();
    backend_->linear(weights.matrix, at<const float>(norm), eps, tokens, at<const float>(x),
                     at<float>(out), arena_, *pool_);
  }

  void gather(const PackedMatrix& weights, int count, uintptr_t ids, uintptr_t out) {
    const int32_t* rows = at<const int32_t>(ids);
    for (int i = 0; i < count; ++i) {
      if (rows[i] < 0 || rows[i] >= weights.matrix.rows) throw std::out_of_range("row id");
    }
    const nb::gil_scoped_release release;
    backend_->gather(weights.matrix, count, rows, at<float>(out));
  }

  void quantise(int format, int rows, int cols, int source, uintptr_t data, uintptr_t codes, uintptr_t scales,
                uintptr_t row_scales, uintptr_t errors) {
    const Format kind = static_cast<Format>(format);
    if (group_of(kind) == 1 || cols % group_of(kind) != 0) throw std::invalid_argument("columns or format");
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(turn_);
    arena_.reset();
    backend_->quantise(kind, rows, cols, static_cast<Format>(source), at<const void>(data), at<uint8_t>(codes),
                       at<int8_t>(scales), at<float>(row_scales), at<double>(errors), arena_, *pool_);
  }

  double probe_read(size_t bytes) {
    const nb::gil_scoped_release release;
    if (probe_ == nullptr || probe_bytes_ < bytes) {
      probe_ = std::make_unique<Memory>(bytes);
      probe_bytes_ = bytes;
      std::fill(probe_->start(), probe_->start() + bytes, uint8_t{1});
    }
    return backend_->probe_read(probe_->start(), bytes, *pool_);
  }

  double probe_multiply(int format, int rounds) {
    const nb::gil_scoped_release release;
    return backend_->probe_multiply(static_cast<Format>(format), rounds, *pool_);
  }

 private:
  std::unique_ptr<Memory> probe_;
  size_t probe_bytes_ = 0;
  const Backend* backend_ = nullptr;
  std::unique_ptr<Pool> pool_;
  std::mutex turn_;
  Arena arena_;
};

std::shared_ptr<OwnedAttention> make_attention(
    int hidden, int heads, int nope, int rope, int value, int latent, float scale, float eps,
    float latent_eps, uintptr_t norm, uintptr_t q_norm, uintptr_t kv_norm, const Weights& wq,
    const Weights& wq_a, const Weights& wq_b, const Weights& wkv_a, const Weights& wo, const Weights& w_uk,
    const Weights& w_uk_t, const Weights& w_uv, uintptr_t fold) {
  auto owned = std::make_shared<OwnedAttention>();
  AttentionLayer& l = owned->layer;
  l = {hidden, heads, nope, rope, value, latent, scale, eps, latent_eps, {}, {}, {},
       owned->keep(wq), owned->keep(wq_a), owned->keep(wq_b), owned->keep(wkv_a), owned->keep(wo),
       owned->keep(w_uk), owned->keep(w_uk_t), owned->keep(w_uv), nullptr};
  const int queries = heads * (nope + rope);
  if (l.wq) {
    expect(l.wq, 1, queries, hidden, "wq");
  } else {
    if (l.wq_a == nullptr || l.wq_b == nullptr) throw std::invalid_argument("wq is missing");
    expect(l.wq_a, 1, l.wq_b->cols, hidden, "wq_a");
    expect(l.wq_b, 1, queries, l.wq_b->cols, "wq_b");
  }
  expect(l.wkv_a, 1, latent + rope, hidden, "wkv_a");
  expect(l.wo, 1, hidden, heads * value, "wo");
  expect(l.w_uk, heads, nope, latent, "w_uk");
  expect(l.w_uk_t, heads, latent, nope, "w_uk_t");
  expect(l.w_uv, heads, value, latent, "w_uv");
  if (latent % 2 != 0 || rope % 2 != 0 || nope % 2 != 0 || latent + rope > 4096) {
    throw std::invalid_argument("these widths are not supported");
  }
  l.norm = owned->keep(norm, hidden);
  l.kv_norm = owned->keep(kv_norm, latent);
  l.q_norm = l.wq ? nullptr : owned->keep(q_norm, l.wq_b->cols);
  if (fold) l.fold = owned->keep(fold, static_cast<size_t>(heads) * (latent / group_of(l.w_uk_t->format)) * nope);
  return owned;
}

std::shared_ptr<OwnedMlp> make_mlp(int hidden, int width, float eps, uintptr_t norm, const Weights& gate,
                                   const Weights& up, const Weights& down) {
  auto owned = std::make_shared<OwnedMlp>();
  owned->layer = {hidden, width, eps, owned->keep(norm, hidden), owned->keep(gate), owned->keep(up),
                  owned->keep(down)};
  expect(owned->layer.gate, 1, width, hidden, "gate");
  expect(owned->layer.up, 1, width, hidden, "up");
  expect(owned->layer.down, 1, hidden, width, "down");
  expect_alike(owned->layer.gate, owned->layer.up, "gate and up");
  return owned;
}

std::shared_ptr<OwnedMoe> make_moe(int hidden, int width, int shared_width, float eps, int experts, int chosen,
                                   int groups, int chosen_groups, int score, int group_score, bool normalise,
                                   float scale, uintptr_t norm, uintptr_t bias, const Weights& router,
                                   const Weights& gate, const Weights& up, const Weights& down,
                                   const Weights& shared_gate, const Weights& shared_up,
                                   const Weights& shared_down) {
  if (experts < 1 || experts > 1024 || chosen < 1 || chosen > experts || groups < 1 || experts % groups) {
    throw std::invalid_argument("routing sizes are not supported");
  }
  auto owned = std::make_shared<OwnedMoe>();
  MoeLayer& l = owned->layer;
  l = {hidden, width, shared_width, eps,
       {experts, chosen, groups, chosen_groups, static_cast<Score>(score), static_cast<GroupScore>(group_score),
        normalise, scale},
       owned->keep(norm, hidden), owned->keep(bias, experts), owned->keep(router), owned->keep(gate),
       owned->keep(up), owned->keep(down), owned->keep(shared_gate), owned->keep(shared_up),
       owned->keep(shared_down)};
  expect(l.router, 1, experts, hidden, "router");
  if (l.router->format != Format::kF32) throw std::invalid_argument("router must be fp32");
  expect(l.gate, experts, width, hidden, "gate");
  expect(l.up, experts, width, hidden, "up");
  expect(l.down, experts, hidden, width, "down");
  if (shared_width > 0) {
    expect(l.shared_gate, 1, shared_width, hidden, "shared gate");
    expect(l.shared_up, 1, shared_width, hidden, "shared up");
    expect(l.shared_down, 1, hidden, shared_width, "shared down");
    expect_alike(l.shared_gate, l.shared_up, "shared gate and shared up");
    expect_alike(l.gate, l.shared_gate, "gate and shared gate");
  }
  expect_alike(l.gate, l.up, "gate and up");
  return owned;
}

}  // namespace
}  // namespace dsv2

NB_MODULE(_native, m) {
  using namespace dsv2;
  // Thread pools are kept until the process ends, which is not a leak.
  nb::set_leak_warnings(false);
  m.def("supported", [] {
    std::vector<std::string> names;
    for (const Backend* one : backends()) names.emplace_back(one->name());
    return names;
  });

  nb::class_<PackedMatrix>(m, "Matrix")
      .def_prop_ro("bytes", [](const PackedMatrix& p) { return p.matrix.bytes; })
      .def_prop_ro("rows", [](const PackedMatrix& p) { return p.matrix.rows; })
      .def_prop_ro("cols", [](const PackedMatrix& p) { return p.matrix.cols; });

  nb::class_<Batch>(m, "Batch")
      .def("__init__",
           [](Batch* self, int tokens, int sequences, int table_width, uintptr_t cu_q, uintptr_t kv_len,
              uintptr_t block_table, uintptr_t slots, uintptr_t absorbed, uintptr_t cos, uintptr_t sin) {
             new (self) Batch{tokens, sequences, table_width, at<const int32_t>(cu_q),
                              at<const int32_t>(kv_len), at<const int32_t>(block_table),
                              at<const int32_t>(slots), at<const uint8_t>(absorbed), at<const float>(cos),
                              at<const float>(sin)};
           });

  nb::class_<OwnedAttention>(m, "AttentionLayer")
      .def_prop_ro("bytes", &OwnedAttention::bytes)
      .def_prop_ro("latent", [](const OwnedAttention& owned) { return owned.layer.latent; })
      .def_prop_ro("rope", [](const OwnedAttention& owned) { return owned.layer.rope; });
  nb::class_<OwnedMlp>(m, "MlpLayer").def_prop_ro("bytes", &OwnedMlp::bytes);
  nb::class_<OwnedMoe>(m, "MoeLayer").def_prop_ro("bytes", &OwnedMoe::bytes);
  m.def("attention_layer", &make_attention, nb::kw_only(), nb::arg("hidden"), nb::arg("heads"), nb::arg("nope"),
        nb::arg("rope"), nb::arg("value"), nb::arg("latent"), nb::arg("scale"), nb::arg("eps"),
        nb::arg("latent_eps"), nb::arg("norm"), nb::arg("q_norm"), nb::arg("kv_norm"), nb::arg("wq").none(),
        nb::arg("wq_a").none(), nb::arg("wq_b").none(), nb::arg("wkv_a"), nb::arg("wo"), nb::arg("w_uk"),
        nb::arg("w_uk_t"), nb::arg("w_uv"), nb::arg("fold"));
  m.def("mlp_layer", &make_mlp, nb::kw_only(), nb::arg("hidden"), nb::arg("width"), nb::arg("eps"),
        nb::arg("norm"), nb::arg("gate"), nb::arg("up"), nb::arg("down"));
  m.def("moe_layer", &make_moe, nb::kw_only(), nb::arg("hidden"), nb::arg("width"), nb::arg("shared_width"),
        nb::arg("eps"), nb::arg("experts"), nb::arg("chosen"), nb::arg("groups"), nb::arg("chosen_groups"),
        nb::arg("score"), nb::arg("group_score"), nb::arg("normalise"), nb::arg("scale"), nb::arg("norm"),
        nb::arg("bias"), nb::arg("router"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
        nb::arg("shared_gate").none(), nb::arg("shared_up").none(), nb::arg("shared_down").none());

  nb::class_<Stack>(m, "Stack").def(nb::init<>()).def("add", &Stack::add);

  nb::class_<Kernels>(m, "Kernels")
      .def(nb::init<const std::string&, int>(), nb::arg("isa"), nb::arg("threads"))
      .def_prop_ro("isa", &Kernels::isa)
      .def_prop_ro("threads", &Kernels::threads)
      .def_prop_ro("scratch_bytes", &Kernels::scratch_bytes)
      .def("pack", &Kernels::pack, nb::kw_only(), nb::arg("format"), nb::arg("source_format"), nb::arg("count"),
           nb::arg("rows"), nb::arg("cols"), nb::arg("data"), nb::arg("scales"), nb::arg("row_scales"),
           nb::arg("item_stride"), nb::arg("row_stride"), nb::arg("col_stride"), nb::arg("item_rows"))
      .def("use", &Kernels::use, nb::kw_only(), nb::arg("format"), nb::arg("count"), nb::arg("rows"),
           nb::arg("cols"), nb::arg("codes"), nb::arg("scales"), nb::arg("row_scales"), nb::arg("owner"))
      .def("attention", &Kernels::attention)
      .def("mlp", &Kernels::mlp)
      .def("moe", &Kernels::moe)
      .def("run", &Kernels::run)
      .def("linear", &Kernels::linear)
      .def("gather", &Kernels::gather)
      .def("quantise", &Kernels::quantise)
      .def("probe_read", &Kernels::probe_read)
      .def("probe_multiply", &Kernels::probe_multiply);
}

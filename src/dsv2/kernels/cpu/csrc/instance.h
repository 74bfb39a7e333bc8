// The backend of one instruction set V, from the templates.
#pragma once

#include "attention.h"
#include "backend.h"
#include "feedforward.h"
#include "pack.h"
#include "probe.h"
#include "quantise.h"

namespace dsv2 {
namespace {

template <class V>
class Instance final : public Backend {
 public:
  explicit Instance(const char* name) : name_(name) {}
  const char* name() const override { return name_; }

  void pack(const Source& source, Matrix& out, Pool& pool) const override {
    pack_matrix<V>(source, out, pool);
  }

  bool is_unsigned() const override { return V::kBiased; }

  void attention(const AttentionLayer& layer, const Batch& batch, const Cache& cache, float* x, Arena& arena,
                 Pool& pool) const override {
    if constexpr (V::kBf16) {
      if (cache.format != Format::kF32) {
        const Attention<V, true> work(layer, batch, cache, x, arena, pool.threads());
        pool.run([&](Team& team) { run(work, team); });
        return;
      }
    }
    const Attention<V, false> work(layer, batch, cache, x, arena, pool.threads());
    pool.run([&](Team& team) { run(work, team); });
  }

  void mlp(const MlpLayer& layer, int tokens, float* x, Arena& arena, Pool& pool) const override {
    FeedForward<V> work(layer, tokens, x, arena, pool.threads());
    pool.run([&](Team& team) { run(work, team); });
  }

  void moe(const MoeLayer& layer, int tokens, float* x, Arena& arena, Pool& pool) const override {
    FeedForward<V> work(layer, tokens, x, arena, pool.threads());
    pool.run([&](Team& team) { run(work, team); });
  }

  void linear(const Matrix& w, const float* norm, float eps, int tokens, const float* x, float* out,
              Arena& arena, Pool& pool) const override {
    const Panels in = Panels::make<V>(arena, tokens, w.cols, w.format);
    const size_t stride = static_cast<size_t>(w.blocks) * kLanes;
    const bool direct = w.rows % kLanes == 0;
    float* wide = direct ? out : arena.take<float>(tokens * stride);
    float* rows = arena.take<float>(static_cast<size_t>(tokens) * w.cols);
    pool.run([&](Team& team) {
      team.each(tokens, 1, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
          const float* row = x + t * w.cols;
          if (norm) {
            rms_norm<V>(row, norm, w.cols, eps, rows + t * w.cols);
            row = rows + t * w.cols;
          }
          write_token<V>(in, t, row);
        }
      });
      multiply_units<V>(team, w, in, wide, stride);
      V::leave();
      if (direct) return;
      team.each(tokens, 1, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
          std::memcpy(out + t * w.rows, wide + t * stride, sizeof(float) * w.rows);
        }
      });
    });
  }

  void gather(const Matrix& w, int count, const int32_t* ids, float* out) const override {
    for (int i = 0; i < count; ++i) unpack_row<V>(w, ids[i], out + static_cast<size_t>(i) * w.cols);
  }

  void quantise(Format format, int rows, int cols, Format source, const void* data, uint8_t* codes,
                int8_t* scales, float* row_scales, double* errors, Arena& arena, Pool& pool) const override {
    float* scratch = arena.take<float>(static_cast<size_t>(cols) * pool.threads());
    quantise_matrix<V>(format, rows, cols, source, data, codes, scales, row_scales, errors, scratch, pool);
  }

  double probe_read(const uint8_t* data, size_t bytes, Pool& pool) const override {
    return dsv2::probe_read<V>(data, bytes, pool);
  }

  double probe_multiply(Format format, int rounds, Pool& pool) const override {
    return dsv2::probe_multiply<V>(format, rounds, pool);
  }

 private:
  template <class Work>
  static void run(Work& work, Team& team) {
    work(team);
    V::leave();
  }

  const char* name_;
};

}  // namespace
}  // namespace dsv2

// What an instruction set offers; one instance each, in its own translation unit.
#pragma once

#include "arena.h"
#include "pool.h"
#include "types.h"

namespace dsv2 {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  // Fills the memory of `out` from portable weights.
  virtual void pack(const Source& source, Matrix& out, Pool& pool) const = 0;
  // Whether packed 8-bit codes are unsigned, 128 above their levels.
  virtual bool is_unsigned() const = 0;
  // x[T, hidden] += attention(norm(x)); the cache is written at the batch's slots.
  virtual void attention(const AttentionLayer& layer, const Batch& batch, const Cache& cache, float* x,
                         Arena& arena, Pool& pool) const = 0;
  // x[T, hidden] += feed_forward(norm(x)).
  virtual void mlp(const MlpLayer& layer, int tokens, float* x, Arena& arena, Pool& pool) const = 0;
  virtual void moe(const MoeLayer& layer, int tokens, float* x, Arena& arena, Pool& pool) const = 0;
  // out[T, rows] = norm(x) w^T, without the norm when it is null.
  virtual void linear(const Matrix& w, const float* norm, float eps, int tokens, const float* x, float* out,
                      Arena& arena, Pool& pool) const = 0;
  // out[n, cols] = rows of w by id.
  virtual void gather(const Matrix& w, int count, const int32_t* ids, float* out) const = 0;
  // Portable codes of fp32 or bf16 weights [rows, cols] with the squared error of each row.
  virtual void quantise(Format format, int rows, int cols, Format source, const void* data, uint8_t* codes,
                        int8_t* scales, float* row_scales, double* errors, Arena& arena, Pool& pool) const = 0;
  // Bytes per second, and operations per second of the dot product for a format.
  virtual double probe_read(const uint8_t* data, size_t bytes, Pool& pool) const = 0;
  virtual double probe_multiply(Format format, int rounds, Pool& pool) const = 0;
};

// The machine's best is the first of these that is not null; each is null where the processor or
// the build lacks it.
const Backend* amx_backend();
const Backend* avx512_bf16_backend();
const Backend* avx512_backend();
const Backend* avx2_backend();
const Backend* scalar_backend();

}  // namespace dsv2

// One attention layer on a ragged batch (report, section 2.1): norm, projections, rotation, cache
// write, attention in the form that each sequence asks for, output projection, residual.
#pragma once

#include "flash.h"
#include "flash_byte_tiles.h"
#include "flash_bytes.h"
#include "matmul.h"
#include "pool.h"
#include "prompt_tiles.h"

namespace dsv2 {
namespace {

constexpr int kStretch = 1024; // keys that are expanded at once
constexpr int kTogether = 4;   // tiles of queries that go over those together, for them to stay in cache
constexpr int kMostParts = 1024; // parts of absorbed sequences that there is memory for at once

template <class V>
size_t padded(const Matrix& w) {
  return static_cast<size_t>(w.blocks) * kLanes;
}

template <class V, bool bf16>
class Attention {
  using Kernel = Flash<V, bf16>;
  using Bytes = FlashBytes<V>;
  using Tiles = PromptTiles<V>;
  using Element = typename Kernel::Element;
  static constexpr Format kElement = bf16 ? Format::kBf16 : Format::kF32;

 public:
  Attention(const AttentionLayer& layer, const Batch& batch, const Cache& cache, float* x, Arena& arena,
            int threads)
      : layer_(layer), batch_(batch), cache_(cache), layout_(layer.latent, layer.rope), x_(x), arena_(arena) {
    plan(threads);
  }

  void operator()(Team& team) const {
    project(team);
    write_cache(team);
    if (absorbed_ > 0) {
      absorb(team);
      for (int first = 0, last; first < tile_count_; first = last) {
        last = together(first);
        attend_absorbed(team, first, last);
        join(team, first, last);
      }
      lift(team);
    }
    for (int b = 0; b < batch_.sequences; ++b) {
      if (!batch_.absorbed[b]) attend_expanded(team, b);
    }
    finish(team);
  }

 private:
  // A tile of 16 (token, head) rows of an absorbed sequence; parts [first_part, first_part + parts).
  struct Tile {
    int sequence;
    int first_row;  // among the rows of all absorbed tokens
    int rows;
    int token;      // the sequence's first among all absorbed tokens
    int parts;
    size_t first_part;
  };
  // kSplit keys of a tile's sequence.
  struct Part {
    int tile, part;
  };

  const AttentionLayer& layer_;
  const Batch& batch_;
  const Cache& cache_;
  const LatentLayout layout_;
  float* x_;
  Arena& arena_;

  Panels in_, in_kv_, compressed_, latent_, mixed_, folded_, uv_in_, out_in_;
  float *normed_, *q_, *q_a_, *kv_, *q_latent_, *o_, *scratch_;
  size_t q_stride_, q_a_stride_, kv_stride_, o_stride_, latent_stride_, scratch_words_;
  int* absorbed_rows_;  // tokens of absorbed sequences, in order
  int absorbed_ = 0, tile_count_ = 0;
  Tile* tiles_ = nullptr;
  size_t parts_ = 0;
  int32_t* queries_;
  float *part_o_, *part_ml_;
  Part* part_list_;
  Element *keys_, *values_;
  float *tile_o_, *tile_ml_;
  int longest_ = 0;
  size_t key_width_ = 0, value_width_ = 0;

  int tokens() const { return batch_.tokens; }
  int width() const { return layer_.latent + layer_.rope; }
  int query_width() const { return layer_.nope + layer_.rope; }

  void plan(int threads);
  void project(Team& team) const;
  void write_cache(Team& team) const;
  void absorb(Team& team) const;
  void attend_absorbed(Team& team, int first_tile, int last_tile) const;
  void attend_codes(const QueryTile& tile, int32_t* query, int sequence, int begin, int end, const Part* next,
                    float* work) const;
  void join(Team& team, int first_tile, int last_tile) const;
  void lift(Team& team) const;
  void attend_expanded(Team& team, int sequence) const;
  void finish(Team& team) const;

  const uint8_t* page(int sequence, int index) const {
    const int block = batch_.block_table[static_cast<size_t>(sequence) * batch_.table_width + index];
    return cache_.data + static_cast<size_t>(block) * kPage * cache_.token_bytes;
  }

  // What the cache has of the page that begins at a position of a sequence.
  Ahead page_from(int sequence, int key) const {
    const int tokens = smaller(kPage, batch_.kv_len[sequence] - key);
    return {page(sequence, key / kPage), static_cast<int>(ceil_div(tokens * cache_.token_bytes, size_t{64}))};
  }
  // A page of a part of absorbed attention; nothing behind the sequence's last.
  Ahead page_of(const Part& part, int page) const {
    const int sequence = tiles_[part.tile].sequence, key = part.part * kSplit + page * kPage;
    return key < batch_.kv_len[sequence] ? page_from(sequence, key) : Ahead{};
  }
  // The tile behind those that are computed together from tile `first` on: as many as there is memory for
  // the parts of, and one at least.
  int together(int first) const {
    int last = first + 1;
    while (last < tile_count_ && parts_of(first, last + 1) <= kMostParts) ++last;
    return last;
  }
  int64_t parts_of(int first_tile, int last_tile) const {
    const Tile& last = tiles_[last_tile - 1];
    return static_cast<int64_t>(last.first_part) + last.parts - static_cast<int64_t>(tiles_[first_tile].first_part);
  }

  // Columns of the latent as values: the kernel mixes 32 at a time.
  int value_columns() const {
    return coded() ? layout_.codes_latent : ceil_div(layer_.latent, 32) * 32;
  }
  // Whether absorbed attention multiplies the cache's codes themselves, with a kernel of its own.
  bool coded() const { return has_codes(cache_.format); }
  static constexpr bool on_tiles() { return bf16 && V::kMatrixUnit; }
  size_t query_words() const { return coded() ? Bytes::words(layout_) : Kernel::words(width()); }
  // Whether the kernel can read the cache as it is.
  bool direct() const { return cache_.format == kElement && layer_.latent % 32 == 0; }
  size_t page_stride() const {
    return direct() ? width() : ceil_div(width() > value_columns() ? width() : value_columns(), 32) * 32;
  }

  // The latents of a page as elements of the kernel, converted where the cache holds another kind.
  const Element* page_elements(int sequence, int index, int count, Element* scratch) const {
    const uint8_t* start = page(sequence, index);
    if (direct()) return reinterpret_cast<const Element*>(start);
    alignas(64) float row[4096];
    for (int n = 0; n < count; ++n) {
      load_row<V>(cache_.format, start + n * cache_.token_bytes, row, width());
      store_row<V>(kElement, scratch + n * page_stride(), row, width());
    }
    return scratch;
  }

  // The same for codes: 8-bit ones code_stride() apart, and the scales of `count` tokens, of a token or a
  // group as far apart as the kernel has them. `scratch` takes the codes of a page where the cache has
  // others.
  const uint8_t* page_codes(int sequence, int index, int count, uint8_t* scratch, float* scales) const {
    const size_t of_token = V::kMatrixUnit ? 1 : layout_.groups_all, of_group = V::kMatrixUnit ? kSplit : 1;
    const uint8_t* start = page(sequence, index);
    const size_t code_bytes = layout_.code_bytes(cache_.format);
    for (int n = 0; n < count; ++n) {
      const uint8_t* own = start + n * cache_.token_bytes + code_bytes;
      for (int g = 0; g < layout_.groups_all; ++g) {
        scales[n * of_token + g * of_group] = latent_scales().of[own[g]];
      }
    }
    if (cache_.format == Format::kInt8) return start;
    for (int n = 0; n < count; ++n) {
      unpack_six<V>(start + n * cache_.token_bytes, layout_.codes_all, scratch + n * code_stride());
    }
    return scratch;
  }
  size_t code_stride() const {
    return cache_.format == Format::kInt8 ? cache_.token_bytes : static_cast<size_t>(layout_.codes_all);
  }

  // Words of scratch before the scales of keys.
  static constexpr size_t coded_scratch() {
    return V::kMatrixUnit ? FlashByteTiles<V>::kScratch : Bytes::kScratch;
  }

  // The rows of all absorbed tokens for one head, or one of its groups, out of the panels of all.
  Panels head_set(const Panels& all, int64_t index) const {
    Panels set = all;
    const size_t place = static_cast<size_t>(index) * absorbed_;
    set.chunks = Chunks(absorbed_, tile_of<V>(set.format));
    set.data += place * set.words;
    set.scales += place * set.groups;
    set.starts += place * set.groups;
    return set;
  }

  // Whether prompts have a kernel of their own, with its own order of keys, values and queries.
  bool prompt_tiles() const {
    if constexpr (on_tiles()) {
      return Tiles::takes(layer_.nope, layer_.rope, layer_.w_uk->format, layer_.w_uv->format);
    }
    return false;
  }
  int block_keys() const { return prompt_tiles() ? Tiles::kBlock : kPage; }
  static constexpr size_t kernel_scratch() {
    if constexpr (on_tiles()) return Tiles::kScratch > Kernel::kScratch ? Tiles::kScratch : Kernel::kScratch;
    return Kernel::kScratch;
  }

  void put(bool is_key, int head, size_t key, int number, int column, const float* x, size_t stride, int count) const;
  void pack_queries(int32_t* words, int row, int rows, int head) const;

  float* scratch(const Team& team) const { return scratch_ + team.member() * scratch_words_; }
};

template <class V, bool bf16>
void Attention<V, bf16>::plan(int threads) {
  const int T = tokens(), H = layer_.heads, C = layer_.latent;
  normed_ = arena_.take<float>(static_cast<size_t>(T) * layer_.hidden);
  const Matrix& first = layer_.wq ? *layer_.wq : *layer_.wq_a;
  in_ = Panels::make<V>(arena_, T, layer_.hidden, first.format);
  in_kv_ = layer_.wkv_a->format == first.format
               ? in_
               : Panels::make<V>(arena_, T, layer_.hidden, layer_.wkv_a->format);
  const Matrix& last = layer_.wq ? *layer_.wq : *layer_.wq_b;
  q_stride_ = padded<V>(last);
  q_ = arena_.take<float>(T * q_stride_);
  q_a_stride_ = padded<V>(first);
  q_a_ = q_;
  if (!layer_.wq) {
    q_a_ = arena_.take<float>(T * q_a_stride_);
    compressed_ = Panels::make<V>(arena_, T, layer_.wq_b->cols, layer_.wq_b->format);
  }
  kv_stride_ = padded<V>(*layer_.wkv_a);
  kv_ = arena_.take<float>(T * kv_stride_);
  out_in_ = Panels::make<V>(arena_, T, layer_.wo->cols, layer_.wo->format);
  // W^UV writes whole blocks of 16 rows, also where V is not a multiple of it.
  o_stride_ = static_cast<size_t>(H) * layer_.value + kLanes;
  o_ = arena_.take<float>(T * o_stride_);

  absorbed_rows_ = arena_.take<int>(T);
  size_t tiles = 0;
  for (int b = 0; b < batch_.sequences; ++b) {
    const int begin = batch_.cu_q[b], end = batch_.cu_q[b + 1];
    if (!batch_.absorbed[b]) {
      longest_ = longest_ > end - begin ? longest_ : end - begin;
      continue;
    }
    for (int t = begin; t < end; ++t) absorbed_rows_[absorbed_++] = t;
    tiles += ceil_div((end - begin) * H, kLanes);
  }
  // Scratch of a thread: what a kernel works in, then a page that had to be converted.
  const size_t plain_words = kernel_scratch() + kPage * page_stride();
  const size_t coded_words =
      coded_scratch() + static_cast<size_t>(kSplit) * (layout_.groups_all + layout_.codes_all / 4);
  const size_t widest = padded<V>(*layer_.w_uv), row = widest > kUnit * kLanes ? widest : kUnit * kLanes;
  scratch_words_ = (coded_words > plain_words ? coded_words : plain_words) + widest_tile<V>() * row;
  if (absorbed_ > 0) {
    tiles_ = arena_.take<Tile>(tiles);
    for (int b = 0, row = 0; b < batch_.sequences; ++b) {
      if (!batch_.absorbed[b]) continue;
      const int q_len = batch_.cu_q[b + 1] - batch_.cu_q[b], rows = q_len * H;
      for (int first_row = 0; first_row < rows; first_row += kLanes) {
        const int used = smaller(kLanes, rows - first_row);
        const int seen = batch_.kv_len[b] - q_len + (first_row + used - 1) / H + 1;
        const int parts = ceil_div(seen, kSplit);
        tiles_[tile_count_++] = {b, row * H + first_row, used, row, parts, parts_};
        parts_ += parts;
      }
      row += q_len;
    }
    part_list_ = arena_.take<Part>(parts_);
    for (int t = 0; t < tile_count_; ++t) {
      for (int p = 0; p < tiles_[t].parts; ++p) part_list_[tiles_[t].first_part + p] = {t, p};
    }
    queries_ = arena_.take<int32_t>(tile_count_ * query_words());
    int64_t most = 0;
    for (int first = 0, last; first < tile_count_; first = last) {
      last = together(first);
      most = most > parts_of(first, last) ? most : parts_of(first, last);
    }
    part_o_ = arena_.take<float>(most * kLanes * value_columns());
    part_ml_ = arena_.take<float>(most * 2 * kLanes);
    latent_stride_ = static_cast<size_t>(C) + kLanes;
    q_latent_ = arena_.take<float>(absorbed_ * static_cast<size_t>(H) * latent_stride_);
    // Per head: queries for W^UK transposed (a set for each group of its rows), then outputs.
    const int folds = layer_.fold ? C / group_of(layer_.w_uk_t->format) : 1;
    folded_ = Panels::make<V>(arena_, absorbed_ * H * folds, layer_.nope, layer_.w_uk_t->format);
    uv_in_ = Panels::make<V>(arena_, absorbed_ * H, C, layer_.w_uv->format);
  }
  if (longest_ > 0) {
    key_width_ = query_width();
    value_width_ = static_cast<size_t>(ceil_div(layer_.value, 32)) * 32;
    latent_ = Panels::make<V>(arena_, kStretch, C, layer_.w_uk->format);
    keys_ = arena_.take<Element>(static_cast<size_t>(kStretch) * H * key_width_);
    values_ = arena_.take<Element>(static_cast<size_t>(kStretch) * H * value_width_);
    const size_t rows = static_cast<size_t>(ceil_div(longest_, kLanes)) * kLanes * H;
    tile_o_ = arena_.take<float>(rows * value_width_);
    tile_ml_ = arena_.take<float>(rows * 2);
    scratch_words_ += kTogether * Kernel::words(query_width()) + static_cast<size_t>(kLanes) * layer_.rope;
  }
  scratch_words_ = (scratch_words_ + 63) / 64 * 64;
  scratch_ = arena_.take<float>(scratch_words_ * threads);
}

template <class V, bool bf16>
void Attention<V, bf16>::project(Team& team) const {
  const int T = tokens(), D = layer_.hidden;
  team.each(T, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* row = normed_ + t * D;
      rms_norm<V>(x_ + t * D, layer_.norm, D, layer_.eps, row);
      write_token<V>(in_, t, row);
      if (in_kv_.data != in_.data) write_token<V>(in_kv_, t, row);
    }
  });
  const Matrix& wq = layer_.wq ? *layer_.wq : *layer_.wq_a;
  const int own = units(wq), both = own + units(*layer_.wkv_a);
  team.each_with_next(both, [&](int64_t u, int64_t next) {
    const uint8_t* after = next < own    ? unit_start(wq, 0, next)
                           : next < both ? unit_start(*layer_.wkv_a, 0, next - own)
                                         : nullptr;
    if (u < own) {
      multiply_unit<V>(wq, 0, u, in_, q_a_, q_a_stride_, after);
    } else {
      multiply_unit<V>(*layer_.wkv_a, 0, u - own, in_kv_, kv_, kv_stride_, after);
    }
  });
  if (layer_.wq) return;
  team.each(T, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* row = q_a_ + t * q_a_stride_;
      rms_norm<V>(row, layer_.q_norm, layer_.wq_b->cols, layer_.latent_eps, row);
      write_token<V>(compressed_, t, row);
    }
  });
  multiply_units<V>(team, *layer_.wq_b, compressed_, q_, q_stride_);
}

template <class V, bool bf16>
void Attention<V, bf16>::write_cache(Team& team) const {
  const int C = layer_.latent, R = layer_.rope;
  team.each(tokens(), 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const float *cos = batch_.cos + t * (R / 2), *sin = batch_.sin + t * (R / 2);
      float* kv = kv_ + t * kv_stride_;
      rms_norm<V>(kv, layer_.kv_norm, C, layer_.latent_eps, kv);
      rotate(kv + C, cos, sin, R);
      uint8_t* place = cache_.data + static_cast<size_t>(batch_.slots[t]) * cache_.token_bytes;
      store_latent<V>(cache_.format, place, kv, layout_);
      for (int h = 0; h < layer_.heads; ++h) {
        rotate(q_ + t * q_stride_ + h * query_width() + layer_.nope, cos, sin, R);
      }
    }
  });
}

template <class V, bool bf16>
void Attention<V, bf16>::finish(Team& team) const {
  const int D = layer_.hidden;
  team.each(tokens(), 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) write_token<V>(out_in_, t, o_ + t * o_stride_);
  });
  const Matrix& wo = *layer_.wo;
  team.each_with_next(units(wo), [&](int64_t unit, int64_t next) {
    alignas(64) float out[widest_tile<V>() * kUnit * kLanes];
    const size_t stride = kUnit * kLanes;
    const int from = unit * kUnit, to = smaller(from + kUnit, wo.blocks), row0 = from * kLanes;
    for (int chunk = 0; chunk < out_in_.chunks.count; ++chunk) {
      const bool is_last = chunk + 1 == out_in_.chunks.count;
      multiply<V>(wo, 0, from, to, out_in_, chunk, out, stride, is_last ? unit_start(wo, 0, next) : nullptr);
      for (int n = 0; n < out_in_.chunks.width(chunk); ++n) {
        add_row<V>(x_ + static_cast<size_t>(out_in_.chunks.start(chunk) + n) * D + row0,
                   out + n * stride, smaller(to * kLanes, D) - row0);
      }
    }
  });
}

}  // namespace
}  // namespace dsv2

#include "attention_absorbed.h"
#include "attention_expanded.h"

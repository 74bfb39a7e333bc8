// Absorbed attention: on the paged latents themselves (report, appendix C), for generated tokens.
#pragma once

#include "attention.h"

namespace dsv2 {
namespace {

// q_latent[h] = W^UK[h]^T q_nope[h], then queries packed by tiles.
template <class V, bool bf16>
void Attention<V, bf16>::absorb(Team& team) const {
  const int H = layer_.heads, N = layer_.nope, C = layer_.latent;
  const Matrix& w = *layer_.w_uk_t;
  const int group = layer_.fold ? group_of(w.format) : C, folds = C / group;
  team.each(H, 1, [&](int64_t first, int64_t last) {
    float* row = scratch(team);
    for (int64_t h = first; h < last; ++h) {
      for (int f = 0; f < folds; ++f) {
        // The scales of W^UK run along its columns, which are the rows here: they go into the query.
        const Panels set = head_set(folded_, h * folds + f);
        for (int a = 0; a < absorbed_; ++a) {
          const float* q = q_ + absorbed_rows_[a] * q_stride_ + h * query_width();
          if (layer_.fold) {
            const float* fold = layer_.fold + (static_cast<size_t>(h) * folds + f) * N;
            for (int n = 0; n < N; ++n) row[n] = q[n] * fold[n];
            write_token<V>(set, a, row);
          } else {
            write_token<V>(set, a, q);
          }
        }
        const int blocks = group / kLanes;
        const int from = f * blocks, to = layer_.fold ? from + blocks : w.blocks;
        for (int chunk = 0; chunk < set.chunks.count; ++chunk) {
          const size_t start = set.chunks.start(chunk);
          float* out = q_latent_ + (start * H + h) * latent_stride_ + static_cast<size_t>(f) * group;
          multiply<V>(w, h, from, to, set, chunk, out, H * latent_stride_);
        }
      }
    }
  });
  team.each(tile_count_, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Tile& tile = tiles_[i];
      int32_t* query = queries_ + i * query_words();
      if (tile.rows < kLanes) std::memset(query, 0, query_words() * sizeof(int32_t));
      for (int r = 0; r < tile.rows; ++r) {
        const size_t row = tile.first_row + r;
        const float* rope = q_ + absorbed_rows_[row / H] * q_stride_ + row % H * query_width() + N;
        if (coded()) {
          Bytes::pack(query, r, q_latent_ + row * latent_stride_, rope, layout_);
        } else {
          Kernel::pack(query, r, q_latent_ + row * latent_stride_, C, 0);
          Kernel::pack(query, r, rope, layer_.rope, C);
        }
      }
    }
  });
}

template <class V, bool bf16>
void Attention<V, bf16>::attend_absorbed(Team& team, int first_tile, int last_tile) const {
  const int H = layer_.heads;
  const int64_t parts = parts_of(first_tile, last_tile);
  const Part* list = part_list_ + tiles_[first_tile].first_part;
  team.each_with_next(parts, [&](int64_t item, int64_t next_item) {
    const Part& part = list[item];
    const Part* next_part = next_item < parts ? list + next_item : nullptr;
    const Tile& tile = tiles_[part.tile];
    const int b = tile.sequence;
    const int q_len = batch_.cu_q[b + 1] - batch_.cu_q[b];
    float* ml = part_ml_ + item * 2 * kLanes;
    int32_t* query = queries_ + part.tile * query_words();
    QueryTile own{query, {}, INT32_MAX, tile.rows, {part_o_ + item * kLanes * value_columns(), ml, ml + kLanes}};
    int largest = 0;
    for (int r = 0; r < kLanes; ++r) {
      const int row = tile.first_row + smaller(r, tile.rows - 1);
      own.limits[r] = batch_.kv_len[b] - q_len + row / H - tile.token + 1;
      own.smallest_limit = smaller(own.smallest_limit, own.limits[r]);
      largest = largest > own.limits[r] ? largest : own.limits[r];
    }
    const int begin = part.part * kSplit, end = smaller(begin + kSplit, largest);
    float* work = scratch(team);
    if (coded()) {
      attend_codes(own, query, b, begin, end, next_part, work);
      return;
    }
    clear<V>(own.state, value_columns());
    for (int key = begin; key < end; key += kPage) {
      const int count = smaller(kPage, end - key);
      const Ahead next = key + kPage < end ? page_from(b, key + kPage)
                         : next_part       ? page_of(*next_part, 0)
                                           : Ahead{};
      const Element* keys =
          page_elements(b, key / kPage, count, reinterpret_cast<Element*>(work + Kernel::kScratch));
      Kernel::block(own, width(), keys, page_stride(), keys, page_stride(), value_columns(), key, count,
                    layer_.scale, work, direct() ? next : Ahead{});
    }
  });
}

// Keys [begin, end) of a part as codes.
template <class V, bool bf16>
void Attention<V, bf16>::attend_codes(const QueryTile& tile, int32_t* query, int sequence, int begin, int end,
                                      const Part* next, float* work) const {
  float* scales = work + coded_scratch();
  uint8_t* unpacked = reinterpret_cast<uint8_t*>(scales + kSplit * layout_.groups_all);
  if constexpr (V::kMatrixUnit) {
    CodedPart keys{{}, code_stride(), end - begin, scales, {}, {}};
    for (int page = 0; page < keys.page_count(); ++page) {
      const size_t token = static_cast<size_t>(page) * kPage;
      const int key = begin + page * kPage;
      keys.pages[page] =
          page_codes(sequence, key / kPage, keys.keys_of(page), unpacked + token * code_stride(), scales + token);
      // Who knows the next part asks for all of it while this one is mixed.
      if (next) keys.in_mix[page] = page_of(*next, page);
      if (!next && key + kPage < end) keys.in_scores[page] = page_from(sequence, key + kPage);
    }
    FlashByteTiles<V>::part(query, layout_, keys, begin, tile, layer_.scale, work);
  } else {
    clear<V>(tile.state, value_columns());
    for (int key = begin; key < end; key += kPage) {
      const int count = smaller(kPage, end - key);
      const uint8_t* codes = page_codes(sequence, key / kPage, count, unpacked, scales);
      Bytes::block(query, layout_, codes, code_stride(), scales, key, count, tile, layer_.scale, work);
    }
  }
}

// Joins the parts of each row of some tiles, for W^UV.
template <class V, bool bf16>
void Attention<V, bf16>::join(Team& team, int first_tile, int last_tile) const {
  const int H = layer_.heads;
  team.each(last_tile - first_tile, 1, [&](int64_t first, int64_t last) {
    float* row_sum = scratch(team);
    for (int64_t i = first; i < last; ++i) {
      const Tile& tile = tiles_[first_tile + i];
      const size_t first_part = tile.first_part - tiles_[first_tile].first_part;
      for (int r = 0; r < tile.rows; ++r) {
        float top = -1e30f;
        for (int p = 0; p < tile.parts; ++p) {
          const float m = part_ml_[(first_part + p) * 2 * kLanes + r];
          top = m > top ? m : top;
        }
        float total = 0;
        std::memset(row_sum, 0, sizeof(float) * value_columns());
        for (int p = 0; p < tile.parts; ++p) {
          const size_t part = first_part + p;
          const float* ml = part_ml_ + part * 2 * kLanes;
          const float weight = std::exp(ml[r] - top);
          total += ml[kLanes + r] * weight;
          const float* o = part_o_ + (part * kLanes + r) * value_columns();
          const typename V::F by = V::set(weight);
          for (int c = 0; c < value_columns(); c += kLanes) {
            V::store(row_sum + c, V::fma(V::load(o + c), by, V::load(row_sum + c)));
          }
        }
        const typename V::F by = V::set(1.0f / total);
        for (int c = 0; c < value_columns(); c += kLanes) V::store(row_sum + c, V::mul(V::load(row_sum + c), by));
        const int row = tile.first_row + r, h = row % H, a = row / H;
        write_token<V>(head_set(uv_in_, h), a, row_sum);
      }
    }
  });
}

// o[h] = W^UV[h] times what heads have mixed.
template <class V, bool bf16>
void Attention<V, bf16>::lift(Team& team) const {
  const int H = layer_.heads;
  const Matrix& w = *layer_.w_uv;
  team.each(H, 1, [&](int64_t first, int64_t last) {
    float* out = scratch(team);
    const size_t stride = padded<V>(w);
    for (int64_t h = first; h < last; ++h) {
      const Panels set = head_set(uv_in_, h);
      for (int chunk = 0; chunk < set.chunks.count; ++chunk) {
        multiply<V>(w, h, 0, w.blocks, set, chunk, out, stride);
        for (int n = 0; n < set.chunks.width(chunk); ++n) {
          const int t = absorbed_rows_[set.chunks.start(chunk) + n];
          std::memcpy(o_ + t * o_stride_ + h * layer_.value, out + n * stride,
                      sizeof(float) * layer_.value);
        }
      }
    }
  });
}

}  // namespace
}  // namespace dsv2

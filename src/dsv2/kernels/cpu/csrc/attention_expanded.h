// Expanded attention: keys and values built from the latents, for prompts.
#pragma once

#include "attention.h"

namespace dsv2 {
namespace {

// Columns [column, column + count) of `number` expanded keys, or values, of a head from `key` on:
// x[number][stride].
template <class V, bool bf16>
void Attention<V, bf16>::put(bool is_key, int head, size_t key, int number, int column, const float* x, size_t stride,
                             int count) const {
  const size_t width = is_key ? key_width_ : value_width_;
  Element* place = (is_key ? keys_ : values_) + static_cast<size_t>(head) * kStretch * width;
  if constexpr (on_tiles()) {
    if (prompt_tiles()) {
      const auto put_tiles = is_key ? &Tiles::put_keys : &Tiles::put_values;
      return put_tiles(place, key, number, width, column, x, stride, count);
    }
  }
  for (int n = 0; n < number; ++n) store_row<V>(kElement, place + (key + n) * width + column, x + n * stride, count);
}

// Rows [row, row + rows) of one head as a tile of queries.
template <class V, bool bf16>
void Attention<V, bf16>::pack_queries(int32_t* words, int row, int rows, int head) const {
  const int width = query_width();
  if (rows < kLanes) std::memset(words, 0, Kernel::words(width) * sizeof(int32_t));
  for (int r = 0; r < rows; ++r) {
    const float* query = q_ + (row + r) * q_stride_ + head * width;
    if constexpr (on_tiles()) {
      if (prompt_tiles()) {
        Tiles::put_query(words, r, width, query);
        continue;
      }
    }
    Kernel::pack(words, r, query, width, 0);
  }
}

// Keys and values of a stretch of the sequence are built from the latents, then every tile of
// queries that sees any of them goes over it.
template <class V, bool bf16>
void Attention<V, bf16>::attend_expanded(Team& team, int b) const {
  const int H = layer_.heads, C = layer_.latent, R = layer_.rope, N = layer_.nope;
  const int begin = batch_.cu_q[b], q_len = batch_.cu_q[b + 1] - begin, kv_len = batch_.kv_len[b];
  // As many tiles of queries go over the keys together as leave parts enough for the threads.
  const int tiles = ceil_div(q_len, kLanes), parts = 4 * team.size();
  const int together = H * tiles >= kTogether * parts ? kTogether : H * tiles >= 2 * parts ? 2 : 1;
  const int groups = ceil_div(tiles, together);
  const size_t row_words = kLanes * value_width_;
  const Matrix &uk = *layer_.w_uk, &uv = *layer_.w_uv;
  const int uk_units = units(uk), per_head = uk_units + units(uv);
  for (int start = 0; start < kv_len; start += kStretch) {
    const int count = smaller(kStretch, kv_len - start);
    const int filled = prompt_tiles() ? ceil_div(count, Tiles::kFill) * Tiles::kFill : count;
    Panels latent = latent_;
    latent.chunks = Chunks(filled, tile_of<V>(latent.format));
    team.each(ceil_div(filled, kLanes), 1, [&](int64_t first, int64_t last) {
      float *ropes = scratch(team), *row = ropes + kLanes * R;
      for (int n = first * kLanes; n < last * kLanes; n += kLanes) {
        const int number = smaller(kLanes, filled - n);
        for (int i = 0; i < number; ++i) {
          const int position = start + n + i;
          if (position < kv_len) {
            const uint8_t* token = page(b, position / kPage) + position % kPage * cache_.token_bytes;
            load_latent<V>(cache_.format, token, row, layout_);
          } else {
            std::memset(row, 0, sizeof(float) * (C + R));
          }
          write_token<V>(latent, n + i, row);
          std::memcpy(ropes + i * R, row + C, sizeof(float) * R);
        }
        for (int h = 0; h < H; ++h) put(true, h, n, number, N, ropes, R, R);
      }
    });
    team.each(static_cast<int64_t>(H) * per_head, 1, [&](int64_t first, int64_t last) {
      float* out = scratch(team);
      for (int64_t i = first; i < last; ++i) {
        const int h = i / per_head, rest = i % per_head;
        const bool is_key = rest < uk_units;
        const Matrix& w = is_key ? uk : uv;
        const int from = (is_key ? rest : rest - uk_units) * kUnit;
        const int to = smaller(from + kUnit, w.blocks), row0 = from * kLanes;
        const int used = smaller(to * kLanes, w.rows) - row0;
        const size_t stride = static_cast<size_t>(kUnit) * kLanes;
        for (int chunk = 0; chunk < latent.chunks.count; ++chunk) {
          multiply<V>(w, h, from, to, latent, chunk, out, stride);
          put(is_key, h, latent.chunks.start(chunk), latent.chunks.width(chunk), row0, out, stride, used);
        }
      }
    });
    team.each(static_cast<int64_t>(H) * groups, 1, [&](int64_t first, int64_t last) {
      float* work = scratch(team);
      int32_t* queries = reinterpret_cast<int32_t*>(work + kernel_scratch());
      for (int64_t i = first; i < last; ++i) {
        // Late tiles see the most keys: they go first, so that nobody ends alone with one.
        const int h = i % H, group = groups - 1 - i / H;
        const size_t of_head = static_cast<size_t>(h) * kStretch;
        const auto over = [&](const QueryTile* those, int number, int key, int end) {
          const int those_keys = smaller(block_keys(), end - key);
          const Element* keys = keys_ + (of_head + key - start) * key_width_;
          const Element* values = values_ + (of_head + key - start) * value_width_;
          if constexpr (on_tiles()) {
            if (prompt_tiles()) {
              Tiles::block(those, number, query_width(), keys, values, value_width_, key, those_keys, layer_.scale,
                           work);
              return;
            }
          }
          for (int t = 0; t < number; ++t) {
            Kernel::block(those[t], query_width(), keys, key_width_, values, value_width_, value_width_, key,
                          those_keys, layer_.scale, work);
          }
        };
        QueryTile own[kTogether];
        int ends[kTogether], used = 0, shared = start + count;
        for (int tile = group * together; tile < smaller((group + 1) * together, tiles); ++tile) {
          const size_t place = static_cast<size_t>(h) * tiles + tile;
          float* ml = tile_ml_ + place * 2 * kLanes;
          int32_t* words = queries + used * Kernel::words(query_width());
          QueryTile& one = own[used] = {words, {}, 0, smaller(kLanes, q_len - tile * kLanes),
                                        {tile_o_ + place * row_words, ml, ml + kLanes}};
          if (start == 0) clear<V>(one.state, value_width_);
          const int seen = kv_len - q_len + tile * kLanes;
          for (int r = 0; r < kLanes; ++r) one.limits[r] = seen + smaller(r, one.rows - 1) + 1;
          one.smallest_limit = one.limits[0];
          ends[used] = smaller(one.limits[kLanes - 1], start + count);
          if (ends[used] <= start) continue;
          pack_queries(words, begin + tile * kLanes, one.rows, h);
          shared = smaller(shared, ends[used++]);
        }
        if (used == 0) continue;
        int key = start;
        for (; key + block_keys() <= shared; key += block_keys()) over(own, used, key, shared);
        for (int t = 0; t < used; ++t) {
          for (int rest = key; rest < ends[t]; rest += block_keys()) over(own + t, 1, rest, ends[t]);
        }
      }
    });
  }
  team.each(static_cast<int64_t>(H) * tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int h = i / tiles, q0 = i % tiles * kLanes;
      for (int r = 0; r < smaller(kLanes, q_len - q0); ++r) {
        const float by = 1.0f / tile_ml_[i * 2 * kLanes + kLanes + r];
        const float* o = tile_o_ + i * row_words + r * value_width_;
        float* out = o_ + (begin + q0 + r) * o_stride_ + h * layer_.value;
        for (int c = 0; c < layer_.value; ++c) out[c] = o[c] * by;
      }
    }
  });
}

}  // namespace
}  // namespace dsv2

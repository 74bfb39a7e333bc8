// Feed-forward layers (report, section 2.2): norm, routing, SwiGLU experts, sum, residual.
//
// A dense layer, the shared experts and each routed expert are one case: a segment of tokens that
// meet the same three matrices. Routed tokens are gathered into panels of their expert, so that a
// weight is read once for all of them; with one token per expert that is a copy of 2 KB.
#pragma once

#include "elementwise.h"
#include "matmul.h"
#include "pool.h"

namespace dsv2 {
namespace {

struct Segment {
  const Matrix *gate, *up, *down;
  int item, width;
  Panels in, mid;   // [n, D] and [n, F]
  size_t first;     // row of the first result
};

// mid = silu(gate x) * (up x), one unit of 64 columns, quantised where it stands. `after`: the weights
// that this thread reads next.
template <class V>
void gate_up(const Segment& s, int unit, float* scratch, const uint8_t* after) {
  constexpr size_t kRow = kUnit * kLanes;
  const int from = unit * kUnit, to = from + kUnit < s.gate->blocks ? from + kUnit : s.gate->blocks;
  float *gate = scratch, *up = scratch + widest_tile<V>() * kRow;
  for (int chunk = 0; chunk < s.in.chunks.count; ++chunk) {
    const bool is_last = chunk + 1 == s.in.chunks.count;
    multiply<V>(*s.gate, s.item, from, to, s.in, chunk, gate, kRow, unit_start(*s.up, s.item, unit));
    multiply<V>(*s.up, s.item, from, to, s.in, chunk, up, kRow, is_last ? after : nullptr);
    for (int n = 0; n < s.in.chunks.width(chunk); ++n) {
      float* row = gate + n * kRow;
      for (int i = 0; i < (to - from) * kLanes; i += kLanes) {
        V::store(row + i, gated<V>(V::load(row + i), V::load(up + n * kRow + i)));
      }
      write_part<V>(s.mid, s.in.chunks.start(chunk) + n, row, from * kLanes,
                    s.width < to * kLanes ? s.width : to * kLanes);
    }
  }
}

struct Choice {
  int expert;
  float weight;
};

// The K experts of a token from its scores (equations 21 and 22 and their successors'). `choice`
// and `scores` have E numbers; ties go to the lower expert.
inline void choose(const Routing& routing, const float* bias, float* scores, float* choice, Choice* out) {
  const int E = routing.experts, G = routing.groups, per_group = E / G;
  if (routing.score == Score::kSoftmax) {
    float top = scores[0];
    for (int e = 1; e < E; ++e) top = scores[e] > top ? scores[e] : top;
    float sum = 0;
    for (int e = 0; e < E; ++e) sum += scores[e] = std::exp(scores[e] - top);
    for (int e = 0; e < E; ++e) scores[e] /= sum;
  } else {
    for (int e = 0; e < E; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  }
  for (int e = 0; e < E; ++e) choice[e] = bias ? scores[e] + bias[e] : scores[e];
  if (routing.group_score != GroupScore::kNone) {
    // A group is out when enough others are better.
    float best[1024];
    for (int g = 0; g < G; ++g) {
      float first = -INFINITY, second = -INFINITY;
      for (int e = g * per_group; e < (g + 1) * per_group; ++e) {
        if (choice[e] > first) {
          second = first;
          first = choice[e];
        } else if (choice[e] > second) {
          second = choice[e];
        }
      }
      best[g] = routing.group_score == GroupScore::kMax ? first : first + second;
    }
    for (int g = 0; g < G; ++g) {
      int better = 0;
      for (int other = 0; other < G; ++other) {
        better += best[other] > best[g] || (best[other] == best[g] && other < g);
      }
      if (better < routing.chosen_groups) continue;
      for (int e = g * per_group; e < (g + 1) * per_group; ++e) choice[e] = -INFINITY;
    }
  }
  float sum = 0;
  for (int k = 0; k < routing.chosen; ++k) {
    int best = -1;
    for (int e = 0; e < E; ++e) {
      bool taken = false;
      for (int j = 0; j < k; ++j) taken |= out[j].expert == e;
      if (!taken && (best < 0 || choice[e] > choice[best])) best = e;
    }
    out[k] = {best, scores[best]};
    sum += scores[best];
  }
  const float by = routing.scale / (routing.normalise ? sum + 1e-20f : 1.0f);
  for (int k = 0; k < routing.chosen; ++k) out[k].weight *= by;
}

template <class V>
class FeedForward {
 public:
  FeedForward(const MlpLayer& layer, int tokens, float* x, Arena& arena, int threads)
      : tokens_(tokens), hidden_(layer.hidden), eps_(layer.eps), norm_(layer.norm), x_(x), arena_(arena) {
    begin(1, layer.gate->format);
    add_segment(layer.gate, layer.up, layer.down, 0, layer.width, tokens, &in_);
    results_ = arena_.take<float>(rows_ * stride_);
    scratch_ = arena_.take<float>(scratch_words_ * threads);
  }

  FeedForward(const MoeLayer& layer, int tokens, float* x, Arena& arena, int threads)
      : tokens_(tokens), hidden_(layer.hidden), eps_(layer.eps), norm_(layer.norm), x_(x), arena_(arena),
        moe_(&layer) {
    const int E = layer.routing.experts, K = layer.routing.chosen;
    begin(E + 1, layer.gate->format);
    router_in_ = Panels::make<V>(arena_, tokens, hidden_, Format::kF32);
    score_stride_ = static_cast<size_t>(layer.router->blocks) * kLanes;
    scores_ = arena_.take<float>(tokens * score_stride_);
    choices_ = arena_.take<Choice>(static_cast<size_t>(tokens) * K);
    places_ = arena_.take<int>(static_cast<size_t>(tokens) * K);
    counts_ = arena_.take<int>(E + 1);
    owners_ = arena_.take<int>(static_cast<size_t>(tokens) * K);
    // Memory for the segments is one piece each of [T K] tokens, cut up once routing is known.
    routed_in_ = Panels::make<V>(arena_, tokens * K, hidden_, layer.gate->format);
    routed_mid_ = Panels::make<V>(arena_, tokens * K, layer.width, layer.down->format);
    if (layer.shared_width > 0) {
      add_segment(layer.shared_gate, layer.shared_up, layer.shared_down, 0, layer.shared_width, tokens,
                  &in_);
    }
    shared_rows_ = rows_;
    rows_ += static_cast<size_t>(tokens) * K;
    results_ = arena_.take<float>(rows_ * stride_);
    scratch_ = arena_.take<float>(scratch_words_ * threads);
  }

  void operator()(Team& team) {
    team.each(tokens_, 1, [&](int64_t first, int64_t last) {
      float* row = scratch(team);
      for (int64_t t = first; t < last; ++t) {
        rms_norm<V>(x_ + t * hidden_, norm_, hidden_, eps_, row);
        write_token<V>(in_, t, row);
        if (moe_) write_token<V>(router_in_, t, row);
      }
    });
    if (moe_) route(team);
    team.each_with_next(gate_units_, [&](int64_t unit, int64_t next) {
      const int at = find(gate_starts_, unit);
      const Segment& s = segments_[at];
      gate_up<V>(s, unit - gate_starts_[at], scratch(team), start_of(&Segment::gate, gate_starts_, next, at));
    });
    team.each_with_next(down_units_, [&](int64_t unit, int64_t next) {
      const int at = find(down_starts_, unit);
      const Segment& s = segments_[at];
      multiply_unit<V>(*s.down, s.item, unit - down_starts_[at], s.mid, results_ + s.first * stride_, stride_,
                       start_of(&Segment::down, down_starts_, next, at));
    });
    team.each(tokens_, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) combine(t, scratch(team));
    });
  }

 private:
  int tokens_, hidden_;
  float eps_;
  const float* norm_;
  float* x_;
  Arena& arena_;
  const MoeLayer* moe_ = nullptr;

  Panels in_, router_in_, routed_in_, routed_mid_;
  Segment* segments_;
  int count_ = 0;
  int *gate_starts_, *down_starts_;  // first unit of each segment, and the end
  int gate_units_ = 0, down_units_ = 0;
  size_t rows_ = 0, shared_rows_ = 0, stride_, score_stride_ = 0, scratch_words_;
  float *results_, *scores_ = nullptr, *scratch_;
  Choice* choices_ = nullptr;
  int *places_ = nullptr, *counts_ = nullptr, *owners_ = nullptr;

  float* scratch(const Team& team) const { return scratch_ + team.member() * scratch_words_; }

  void begin(int segments, Format in) {
    segments_ = arena_.take<Segment>(segments);
    gate_starts_ = arena_.take<int>(segments + 1);
    down_starts_ = arena_.take<int>(segments + 1);
    gate_starts_[0] = down_starts_[0] = 0;
    in_ = Panels::make<V>(arena_, tokens_, hidden_, in);
    stride_ = static_cast<size_t>(ceil_div(hidden_, kLanes)) * kLanes;
    const size_t tiles = 2u * widest_tile<V>() * kUnit * kLanes;
    scratch_words_ = (tiles > static_cast<size_t>(hidden_) ? tiles : hidden_) + 2 * 1024 + 64;
  }

  void push(const Segment& segment) {
    segments_[count_++] = segment;
    rows_ = rows_ > segment.first + segment.in.chunks.tokens ? rows_ : segment.first + segment.in.chunks.tokens;
    gate_units_ += units(*segment.gate);
    down_units_ += units(*segment.down);
    gate_starts_[count_] = gate_units_;
    down_starts_[count_] = down_units_;
  }

  void add_segment(const Matrix* gate, const Matrix* up, const Matrix* down_, int item, int width,
                   int tokens, const Panels* in) {
    push({gate, up, down_, item, width, *in, Panels::make<V>(arena_, tokens, width, down_->format), rows_});
  }

  // The segment of a unit, which is not before segment s.
  static int find(const int* starts, int64_t unit, int s = 0) {
    while (unit >= starts[s + 1]) ++s;
    return s;
  }

  // Where the weights of a unit begin, whose segment is not before `at`; null behind the last.
  const uint8_t* start_of(const Matrix* Segment::*matrix, const int* starts, int64_t unit, int at) const {
    if (unit >= starts[count_]) return nullptr;
    const int s = find(starts, unit, at);
    return unit_start(*(segments_[s].*matrix), segments_[s].item, unit - starts[s]);
  }

  void route(Team& team) {
    const Routing& routing = moe_->routing;
    const int E = routing.experts, K = routing.chosen;
    const Matrix& router = *moe_->router;
    const Panels& in = router_in_;
    team.each(router.blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        for (int chunk = 0; chunk < in.chunks.count; ++chunk) {
          multiply<V>(router, 0, b, b + 1, in, chunk,
                      scores_ + in.chunks.start(chunk) * score_stride_ + b * kLanes, score_stride_);
        }
      }
    });
    team.each(tokens_, 1, [&](int64_t first, int64_t last) {
      float* work = scratch(team);
      for (int64_t t = first; t < last; ++t) {
        choose(routing, moe_->router_bias, scores_ + t * score_stride_, work, choices_ + t * K);
      }
    });
    if (team.member() == 0) {
      for (int e = 0; e < E; ++e) counts_[e] = 0;
      for (int i = 0; i < tokens_ * K; ++i) places_[i] = counts_[choices_[i].expert]++;
      int start = 0;
      for (int e = 0; e < E; ++e) {
        const int n = counts_[e];
        counts_[e] = start;  // from here on: the expert's first routed row
        if (n == 0) continue;
        Segment s{moe_->gate, moe_->up, moe_->down, e, moe_->width, cut(routed_in_, start, n),
                  cut(routed_mid_, start, n), shared_rows_ + start};
        push(s);
        start += n;
      }
      for (int i = 0; i < tokens_ * K; ++i) {
        places_[i] += counts_[choices_[i].expert];
        owners_[places_[i]] = i / K;
      }
    }
    team.barrier();
    const int shared = moe_->shared_width > 0;
    team.each(count_ - shared, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const Segment& s = segments_[i + shared];
        const int start = s.first - shared_rows_;
        for (int n = 0; n < s.in.chunks.tokens; ++n) copy_token<V>(in_, owners_[start + n], s.in, n);
      }
    });
  }

  static Panels cut(const Panels& whole, int start, int tokens) {
    Panels part = whole;
    part.chunks = Chunks(tokens, tile_of<V>(part.format));
    part.data += static_cast<size_t>(start) * whole.words;
    part.scales += static_cast<size_t>(start) * whole.groups;
    part.starts += static_cast<size_t>(start) * whole.groups;
    return part;
  }

  // x += the weighted sum of a token's experts in their order, and the shared ones.
  void combine(int64_t t, float* sum) {
    float* x = x_ + t * hidden_;
    if (!moe_) {
      add_row<V>(x, results_ + t * stride_, hidden_);
      return;
    }
    const int K = moe_->routing.chosen;
    for (int c = 0; c < static_cast<int>(stride_); c += kLanes) {
      typename V::F acc = V::zero();
      for (int k = 0; k < K; ++k) {
        const size_t row = shared_rows_ + places_[t * K + k];
        acc = V::fma(V::load(results_ + row * stride_ + c), V::set(choices_[t * K + k].weight), acc);
      }
      if (moe_->shared_width > 0) acc = V::add(acc, V::load(results_ + t * stride_ + c));
      V::store(sum + c, acc);
    }
    add_row<V>(x, sum, hidden_);
  }
};

}  // namespace
}  // namespace dsv2

#include "arena.h"

#include <cstdlib>
#include <new>

namespace dsv2 {

Arena::~Arena() {
  for (int i = 0; i < count_; ++i) std::free(pieces_[i].start);
}

void* Arena::take_bytes(size_t bytes) {
  bytes = (bytes + 127) / 64 * 64;
  if (count_ == 0 || used_ + bytes > pieces_[count_ - 1].size) grow(bytes);
  void* out = static_cast<char*>(pieces_[count_ - 1].start) + used_;
  used_ += bytes;
  taken_ += bytes;
  if (taken_ > most_) most_ = taken_;
  return out;
}

void Arena::reset() {
  if (count_ > 1) {
    for (int i = 0; i < count_; ++i) std::free(pieces_[i].start);
    count_ = 0;
    grow(taken_);
  }
  used_ = taken_ = 0;
}

void Arena::grow(size_t bytes) {
  size_t size = count_ > 0 ? pieces_[count_ - 1].size : size_t{1} << 20;
  if (size < bytes) size = bytes;
  size = (size + 4095) / 4096 * 4096;
  void* start = count_ < kPieces ? std::aligned_alloc(4096, size) : nullptr;
  if (start == nullptr) throw std::bad_alloc();
  pieces_[count_++] = {start, size};
  used_ = 0;
}

}  // namespace dsv2

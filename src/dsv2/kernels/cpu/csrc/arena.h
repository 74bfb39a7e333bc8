// Scratch memory of one call: taken in order, given back all at once, kept for the next call.
#pragma once

#include <cstddef>

namespace dsv2 {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Uninitialised, aligned to 64 bytes, with 64 readable bytes behind it. Throws std::bad_alloc.
  template <class T>
  [[gnu::always_inline]] T* take(size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

  // Forgets everything taken; several pieces become one that would have held all.
  void reset();

  // Bytes that were taken at most before they were given back.
  size_t most() const { return most_; }

 private:
  struct Piece {
    void* start;
    size_t size;
  };
  static constexpr int kPieces = 64;

  void* take_bytes(size_t bytes);
  void grow(size_t bytes);

  Piece pieces_[kPieces];
  int count_ = 0;
  size_t used_ = 0;  // of the last piece
  size_t taken_ = 0, most_ = 0;
};

}  // namespace dsv2

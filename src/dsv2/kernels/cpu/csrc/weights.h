// Packed matrices with the memory that they lie in: our own, or that of a mapped file.
#pragma once

#include <nanobind/nanobind.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>

#include "types.h"

namespace nb = nanobind;

namespace dsv2 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Memory of weights: whole pages, huge ones where the system has them, since a step walks all of it.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_((bytes + 4095) / 4096 * 4096) {
    size_t mapped = bytes_ + (bytes_ >= kHugePage ? kHugePage : 0);
    void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    base_ = start;
    mapped_ = mapped;
    start_ = static_cast<uint8_t*>(start);
    if (bytes_ >= kHugePage) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(start);
      start_ += (kHugePage - address % kHugePage) % kHugePage;
      madvise(start_, bytes_, MADV_HUGEPAGE);  // a refusal costs speed only
    }
  }
  ~Memory() { munmap(base_, mapped_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* start() const { return start_; }

 private:
  size_t bytes_, mapped_ = 0;
  void* base_ = nullptr;
  uint8_t* start_ = nullptr;
};

// A reference to a Python object, which may be dropped on any thread.
class Owner {
 public:
  explicit Owner(nb::object object) : object_(std::move(object)) {}
  ~Owner() {
    const nb::gil_scoped_acquire acquire;
    object_.reset();
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

 private:
  nb::object object_;
};

struct PackedMatrix {
  Matrix matrix;
  std::optional<Memory> memory;  // or
  std::optional<Owner> owner;    // of memory from elsewhere

  PackedMatrix(Format format, int count, int rows, int cols) : matrix(layout(format, count, rows, cols)) {
    memory.emplace(matrix.bytes);
    const size_t all = static_cast<size_t>(count) * matrix.blocks;
    matrix.data = memory->start();
    uint8_t* next = matrix.data + all * matrix.block_bytes;
    matrix.row_scales = reinterpret_cast<float*>(next);
    matrix.scales = reinterpret_cast<int8_t*>(next + (matrix.groups ? all * kLanes * sizeof(float) : 0));
  }

  // On memory that is laid out already and is only read.
  PackedMatrix(Format format, int count, int rows, int cols, const Source& blocks, nb::object object)
      : matrix(layout(format, count, rows, cols)) {
    owner.emplace(std::move(object));
    matrix.data = static_cast<uint8_t*>(const_cast<void*>(blocks.data));
    matrix.scales = const_cast<int8_t*>(blocks.scales);
    matrix.row_scales = const_cast<float*>(blocks.row_scales);
  }

 private:
  static Matrix layout(Format format, int count, int rows, int cols) {
    if (count < 1 || rows < 1 || cols < 1) throw std::invalid_argument("an empty matrix");
    const int group = group_of(format);
    if (cols % group != 0) throw std::invalid_argument("columns are not a multiple of the group");
    Matrix m{};
    m.format = format;
    m.count = count;
    m.rows = rows;
    m.cols = cols;
    m.blocks = (rows + kLanes - 1) / kLanes;
    m.groups = group > 1 ? cols / group : 0;
    const size_t per_vector = format == Format::kF32 ? 1 : format == Format::kBf16 ? 2 : format == Format::kInt8 ? 4 : 8;
    m.block_bytes = (cols + per_vector - 1) / per_vector * 64;
    const size_t all = static_cast<size_t>(count) * m.blocks;
    m.bytes = all * m.block_bytes + (m.groups ? all * kLanes * (sizeof(float) + m.groups) : 0);
    return m;
  }
};

}  // namespace
}  // namespace dsv2

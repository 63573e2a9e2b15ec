// The table of `normal-v1` in shared memory. It adds the normal value of a random word to a weight.
#pragma once

#include "layout.h"

namespace fedspzo {

__device__ const Cubic kDeviceTable[kTableRows] = {
#include "../noise_table.inc"
};

#ifndef FEDSPZO_SIGNED_TABLE

// Holds eight copies of each row side by side. A thread reads the column of its lane modulo 8. So
// the eight threads that a 16-byte access serves at a time never share a bank, whatever their rows.
struct Table {
  static constexpr uint32_t kColumns = 8;
  Cubic rows[kTableRows][kColumns];

  __device__ void fill() {
    for (uint32_t i = threadIdx.x; i < kTableRows * kColumns; i += kThreads)
      rows[i / kColumns][i % kColumns] = kDeviceTable[i / kColumns];
  }

  // Returns v + coeff * normal_of(word). The coefficient takes the sign of the normal value.
  __device__ float add_normal(float v, float coeff, uint32_t word) const {
    const float f = float(int32_t(word | 1u));
    const Cubic c = at(bits_of(f));
    const float t = fabsf(f);
    const float z = fmaf(fmaf(fmaf(c.c3, t, c.c2), t, c.c1), t, c.c0);
    return fmaf(float_of(bits_of(coeff) ^ (bits_of(f) & 0x80000000u)), z, v);
  }

  // Returns the row of f, given its bits. The address is computed in bytes, which takes one shift
  // and one (a & b) | c.
  __device__ const Cubic& at(uint32_t bits) const {
    constexpr int kRowShift = 7;  // a row is 1 << kRowShift bytes
    static_assert(sizeof(rows[0]) == 1 << kRowShift);
    const uint32_t row = bits >> (kTableShift - kRowShift) & (kTableRows - 1) << kRowShift;
    const uint32_t column = threadIdx.x % kColumns * uint32_t(sizeof(Cubic));
    return *reinterpret_cast<const Cubic*>(reinterpret_cast<const char*>(rows) + (row | column));
  }
};

#else

// Holds one column. The row bits(f) >> kTableShift includes the sign of f, so neither |f| nor
// moving the sign costs an instruction, but threads share banks. The bits are those of normal_of,
// because negating f, c0 and c2 negates each step of the evaluation.
struct Table {
  static constexpr uint32_t kPositive = 127u << kSegmentBits;
  static constexpr uint32_t kNegative = kPositive + (256u << kSegmentBits);
  Cubic rows[kNegative - kPositive + kTableRows];

  __device__ void fill() {
    for (uint32_t i = threadIdx.x; i < kTableRows; i += kThreads) {
      const Cubic c = kDeviceTable[(kPositive + i) & (kTableRows - 1)];
      rows[i] = c;
      rows[i + kNegative - kPositive] = {-c.c0, c.c1, -c.c2, c.c3};
    }
  }

  __device__ float add_normal(float v, float coeff, uint32_t word) const {
    const float f = float(int32_t(word | 1u));
    const Cubic c = at(bits_of(f));
    return fmaf(coeff, fmaf(fmaf(fmaf(c.c3, f, c.c2), f, c.c1), f, c.c0), v);
  }

  __device__ const Cubic& at(uint32_t bits) const {
    return rows[int32_t(bits >> kTableShift) - int32_t(kPositive)];
  }
};

#endif

}  // namespace fedspzo

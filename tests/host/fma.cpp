// C's fmaf over arrays, as a library: what tests hold other forms of it against.
#include <cmath>
#include <cstdint>

extern "C" void fma_all(const float* a, const float* b, const float* c, float* out, int64_t count) {
  for (int64_t j = 0; j < count; ++j) out[j] = fmaf(a[j], b[j], c[j]);
}

// csrc/noise.h on the host: `stream NAME SEED KEY OFFSET COUNT` writes that many elements of a stream
// to the standard output as float32.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/noise.h"

using namespace fedspzo;

int main(int count, char** arguments) {
  if (count != 6) return 1;
  const bool normal = !std::strcmp(arguments[1], "normal-v1");
  const auto number = [&](int place) { return std::strtoull(arguments[place], nullptr, 10); };
  const uint64_t seed = number(2), key = number(3), offset = number(4), elements = number(5);
  const uint64_t shared = normal ? 4 : 128;  // elements of a counter
  std::vector<float> values(elements);
  Words words{};
  for (uint64_t j = 0; j < elements; ++j) {
    const uint64_t index = offset + j;
    if (j == 0 || index % shared == 0) words = philox(index / shared, key, seed);
    values[j] = normal ? normal_of(words.w[index % 4], kTable)
                       : ((words.w[index / 32 % 4] >> (index % 32)) & 1 ? -1.0f : 1.0f);
  }
  return std::fwrite(values.data(), sizeof(float), elements, stdout) != elements;
}

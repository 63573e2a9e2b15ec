// csrc/noise.h on the host: reads "philox c0 c1 c2 c3 k0 k1" and "normal word" lines of hexadecimal
// words and prints each answer on a line of its own.
#include <cstdio>
#include <cstring>

#include "../../csrc/noise.h"

int main() {
  char kind[16];
  while (std::scanf("%15s", kind) == 1) {
    if (!std::strcmp(kind, "philox")) {
      uint32_t c[4], k[2];
      if (std::scanf("%x %x %x %x %x %x", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1]) != 6) return 1;
      const fedspzo::Words out =
          fedspzo::philox(uint64_t(c[1]) << 32 | c[0], uint64_t(c[3]) << 32 | c[2],
                          uint64_t(k[1]) << 32 | k[0]);
      const fedspzo::PhiloxSpan span(c[1], uint64_t(c[3]) << 32 | c[2], uint64_t(k[1]) << 32 | k[0]);
      const fedspzo::Words same = fedspzo::philox(c[0], span);
      if (std::memcmp(&out, &same, sizeof out)) return 1;
      std::printf("%08x %08x %08x %08x\n", out.w[0], out.w[1], out.w[2], out.w[3]);
    } else {
      uint32_t word;
      if (std::scanf("%x", &word) != 1) return 1;
      std::printf("%08x\n", fedspzo::bits_of(fedspzo::normal_of(word, fedspzo::kTable)));
    }
  }
}

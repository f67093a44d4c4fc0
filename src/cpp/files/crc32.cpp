#include "files/crc32.h"

#include <array>
#include <atomic>

#include "threads/split.h"

namespace mxfp4moe {

namespace {

// Polynomials over GF(2) with the coefficient of x^0 in the highest bit. kPolynomial lacks its x^32.
constexpr uint32_t kPolynomial = 0xedb88320, kOne = 1u << 31, kByte = kOne >> 8;  // kByte is x^8

constexpr uint32_t times_x(uint32_t a) { return a >> 1 ^ ((a & 1) ? kPolynomial : 0); }

constexpr int kSlices = 16;  // bytes at a time
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

// tables[i][b]: what byte b adds to the remainder when i more bytes follow it.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int i = 0; i < kSlices; ++i) {
      for (int bit = 0; bit < 8; ++bit) remainder = times_x(remainder);
      tables[i][byte] = remainder;
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

inline uint32_t load_word(const uint8_t* data) {
  return data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24;
}

// What the four bytes of `word` add when `following` more bytes follow them.
inline uint32_t look_up(uint32_t word, int following) {
  return kTables[following + 3][word & 255] ^ kTables[following + 2][word >> 8 & 255] ^
         kTables[following + 1][word >> 16 & 255] ^ kTables[following][word >> 24];
}

uint32_t crc32_serial(uint32_t crc, const uint8_t* data, int64_t nbytes) {
  crc = ~crc;
  for (; nbytes >= kSlices; nbytes -= kSlices, data += kSlices) {
    crc = look_up(load_word(data) ^ crc, 12) ^ look_up(load_word(data + 4), 8) ^ look_up(load_word(data + 8), 4) ^
          look_up(load_word(data + 12), 0);
  }
  for (; nbytes > 0; --nbytes, ++data) crc = kTables[0][(crc ^ *data) & 255] ^ crc >> 8;
  return ~crc;
}

uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (; a != 0; a <<= 1, b = times_x(b)) {
    if (a & kOne) product ^= b;
  }
  return product;
}

// The checksum of the bytes of `crc` and `nbytes` more is this, xor the checksum of those more.
uint32_t followed_by(uint32_t crc, int64_t nbytes) {
  for (uint32_t power = kByte; nbytes > 0; nbytes >>= 1, power = multiply(power, power)) {
    if (nbytes & 1) crc = multiply(power, crc);
  }
  return crc;
}

}  // namespace

uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t nbytes, int num_threads) {
  std::atomic<uint32_t> sum{followed_by(crc, nbytes)};
  split_units(nbytes, 1, num_threads, [&](int64_t begin, int64_t end) {
    sum.fetch_xor(followed_by(crc32_serial(0, data + begin, end - begin), nbytes - end), std::memory_order_relaxed);
  });
  return sum.load(std::memory_order_relaxed);
}

}  // namespace mxfp4moe

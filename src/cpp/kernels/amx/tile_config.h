// The configuration that ldtilecfg reads: 64 bytes, palette 1 (eight tiles of up to 16 rows of 64 bytes).
// Included inside a kernel table's own namespace.

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the instruction reads 64 bytes");

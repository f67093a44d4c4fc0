// What an instruction set supplies for attention: functions of one thread. attention/attention.h shares their work
// among threads. Each table is compiled from a source file of its own, attention_<lanes>.cpp, on the same lanes as the
// kernel tables, so that these do not depend on it.
//
// The order of all sums, which is the same for any cut of the prompt: keys stand in blocks of kBlockPositions and in
// segments of kSegmentBlocks blocks, both counted from position 0. A segment runs over its blocks by online softmax;
// the states of segments are then merged from the first to the last.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

constexpr int kAttentionLanes = 16;
constexpr int64_t kBlockPositions = 64;
constexpr int64_t kSegmentBlocks = 8;
constexpr int64_t kSegmentPositions = kBlockPositions * kSegmentBlocks;

// A page holds the keys and the values of a block of positions, those of each head together: keys, in groups of
// sixteen positions, as [group][head_dim][16], then values as [position][padded_dim], where padding is zero.
struct KVLayout {
  int64_t num_kv_heads;
  int64_t head_dim;
  DType dtype;  // bfloat16 or float32
};

constexpr int64_t padded_dim(const KVLayout& layout) { return round_up(layout.head_dim, kAttentionLanes); }
constexpr int64_t kv_value_bytes(const KVLayout& layout) { return layout.dtype == DType::kFloat32 ? 4 : 2; }
constexpr int64_t keys_bytes(const KVLayout& layout) {
  return kBlockPositions * layout.head_dim * kv_value_bytes(layout);
}
constexpr int64_t kv_head_bytes(const KVLayout& layout) {
  return keys_bytes(layout) + kBlockPositions * padded_dim(layout) * kv_value_bytes(layout);
}
constexpr int64_t page_bytes(const KVLayout& layout) { return layout.num_kv_heads * kv_head_bytes(layout); }

// The state of a row: its largest score, the sums of its weights in sixteen lanes, by position, and the weighted sum of
// values. It stands in state_floats() floats.
constexpr int64_t kStateMax = 0;
constexpr int64_t kStateWeights = kAttentionLanes;
constexpr int64_t kStateValues = 2 * kAttentionLanes;
constexpr int64_t state_floats(const KVLayout& layout) { return kStateValues + padded_dim(layout); }

// Rows of queries that read the same head of keys and values: `group` query heads of each of consecutive positions.
struct AttentionRows {
  const float* queries;  // [num_rows][head_dim]; row r stands at position first_position + r / group
  const float* sinks;    // [group]: a score without a value for each query head; may be null
  int64_t num_rows;
  int64_t group;
  int64_t first_position;
  int64_t window;  // how many positions a row sees, its own the last of them
  float scale;     // multiplies the products of queries and keys
};

// One segment of the keys and values of one head.
struct AttentionSegment {
  KVLayout layout;
  const uint8_t* const* pages;  // of the whole sequence
  int64_t head;
  int64_t segment;
};

struct AttentionKernels {
  // Writes the state of each row after one segment.
  void (*attend)(const AttentionRows& rows, const AttentionSegment& segment, float* states, uint8_t* scratch);
  // Begins the totals of all rows; the sinks are in them.
  void (*begin)(const AttentionRows& rows, const KVLayout& layout, float* totals);
  // Merges the states of rows after a segment with those after the segments before. Rows that see no position of the
  // segment are left as they are.
  void (*merge)(const AttentionRows& rows, const AttentionSegment& segment, const float* states, float* totals);
  // Writes the results of rows as [num_rows][head_dim].
  void (*finish)(const AttentionRows& rows, const KVLayout& layout, const float* totals, DType dtype, uint8_t* out);
};

// The scratch memory that `attend` needs for so many rows: the scores of a block and a factor for each.
constexpr int64_t attend_scratch_bytes(int64_t num_rows) { return num_rows * (kBlockPositions + 1) * 4; }

}  // namespace mxfp4moe

#include "attention/attention.h"

#include <algorithm>
#include <cstring>

#include "memory/workspace.h"
#include "threads/pool.h"
#include "threads/work_queue.h"

namespace mxfp4moe {
namespace {

// A tile is what one item of work computes: so many rows, whole positions, that read the same head of keys. More rows
// read keys and values less often; fewer stay in the caches of a core.
constexpr int64_t kTileRows = 64;

// Less work than this, in products, is not worth another thread: it takes about 10 us.
constexpr int64_t kMinThreadProducts = 1 << 19;

// States of segments that are computed apart take at most so much memory.
constexpr int64_t kMaxSplitBytes = 32 << 20;

// A tile of one sequence for one head of keys and values.
struct Tile {
  const AttentionSequence* sequence;
  int64_t kv_head;
  int64_t first_query, num_queries;
};

// A segment of a tile, as a thread of its own may compute it.
struct SegmentItem {
  int32_t tile;
  int64_t segment;
};

// The parts of the workspace that one thread uses.
struct ThreadMemory {
  float* queries;  // [rows][head_dim]
  float* states;   // of the rows of a tile, after one segment
  float* totals;
  float* out;  // [rows][head_dim] in the dtype of the result
  uint8_t* scratch;
};

class Call {
 public:
  Call(const AttentionKernels& kernels, const AttentionProblem& problem)
      : kernels_(kernels), p_(problem), group_(problem.num_heads / problem.layout.num_kv_heads) {
    int64_t longest = 1;
    for (int64_t s = 0; s < p_.num_sequences; ++s) longest = std::max(longest, p_.sequences[s].num_queries);
    tile_queries_ = std::min(std::max<int64_t>(1, kTileRows / group_), longest);
    for (int64_t s = 0; s < p_.num_sequences; ++s) {
      const AttentionSequence& sequence = p_.sequences[s];
      num_tiles_ += tiles_of(sequence);
      const double seen = static_cast<double>(std::min(sequence.length, p_.window));
      products_ += 2.0 * seen * static_cast<double>(sequence.num_queries * p_.num_heads * p_.layout.head_dim);
    }
  }

  Status run(int num_threads) {
    if (num_tiles_ == 0) return Status::kOk;
    num_threads = static_cast<int>(
        std::min<double>(num_threads, std::max(1.0, products_ / static_cast<double>(kMinThreadProducts))));
    plan_segments(num_threads);
    Arena sizes(nullptr);
    const int64_t thread_bytes = take_thread(&sizes, nullptr);
    const int64_t item_bytes = round_up(num_items_ * static_cast<int64_t>(sizeof(SegmentItem)), 64);
    Workspace workspace(thread_bytes * num_threads + item_bytes + num_items_ * tile_state_bytes());
    if (workspace.data() == nullptr) return Status::kOutOfMemory;
    thread_memory_ = workspace.data();
    thread_bytes_ = thread_bytes;
    items_ = reinterpret_cast<SegmentItem*>(thread_memory_ + thread_bytes * num_threads);
    item_states_ = reinterpret_cast<uint8_t*>(items_) + item_bytes;
    if (num_items_ > 0) list_items();
    parallel_run(
        num_threads,
        [](void* context, int thread, int threads) { static_cast<Call*>(context)->run_thread(thread, threads); }, this);
    return Status::kOk;
  }

 private:
  int64_t tiles_of(const AttentionSequence& s) const {
    return ceil_div(s.num_queries, tile_queries_) * p_.layout.num_kv_heads;
  }
  int64_t tile_rows() const { return tile_queries_ * group_; }
  int64_t tile_state_bytes() const { return round_up(tile_rows() * state_floats(p_.layout) * 4, 64); }

  int64_t take_thread(Arena* arena, ThreadMemory* m) const {
    ThreadMemory memory;
    memory.queries = arena->take<float>(tile_rows() * p_.layout.head_dim);
    memory.states = arena->take<float>(tile_rows() * state_floats(p_.layout));
    memory.totals = arena->take<float>(tile_rows() * state_floats(p_.layout));
    memory.out = arena->take<float>(tile_rows() * p_.layout.head_dim);
    memory.scratch = arena->take<uint8_t>(attend_scratch_bytes(tile_rows()));
    if (m != nullptr) *m = memory;
    return round_up(arena->used(), 4096);
  }

  // Tiles of a sequence stand from its last positions, which have the most work, to its first.
  Tile tile_at(int64_t index) const {
    const AttentionSequence* sequence = p_.sequences;
    while (index >= tiles_of(*sequence)) index -= tiles_of(*sequence++);
    const int64_t heads = p_.layout.num_kv_heads;
    const int64_t part = ceil_div(sequence->num_queries, tile_queries_) - 1 - index / heads;
    const int64_t first = part * tile_queries_;
    return {sequence, index % heads, first, std::min(tile_queries_, sequence->num_queries - first)};
  }

  // The segments with positions that some query of a tile sees.
  ItemRange segments_of(const Tile& tile) const {
    const int64_t first = tile.sequence->length - tile.sequence->num_queries + tile.first_query;
    const int64_t begin = first < p_.window ? 0 : first - p_.window + 1;
    return {begin / kSegmentPositions, ceil_div(first + tile.num_queries, kSegmentPositions)};
  }

  // Segments of a tile are computed apart if there are too few tiles for all threads.
  void plan_segments(int num_threads) {
    if (num_tiles_ >= 4 * int64_t{num_threads}) return;
    int64_t count = 0;
    for (int64_t i = 0; i < num_tiles_; ++i) {
      const ItemRange segments = segments_of(tile_at(i));
      count += segments.end - segments.begin;
    }
    if (count > num_tiles_ && count * tile_state_bytes() <= kMaxSplitBytes) num_items_ = count;
  }

  void list_items() {
    SegmentItem* item = items_;
    for (int64_t i = 0; i < num_tiles_; ++i) {
      const ItemRange segments = segments_of(tile_at(i));
      for (int64_t s = segments.begin; s < segments.end; ++s) *item++ = {static_cast<int32_t>(i), s};
    }
  }

  AttentionRows rows_of(const Tile& tile, float* queries) const {
    const AttentionSequence& s = *tile.sequence;
    const float* sinks = p_.sinks == nullptr ? nullptr : p_.sinks + tile.kv_head * group_;
    const int64_t first_position = s.length - s.num_queries + tile.first_query;
    return {queries, sinks, tile.num_queries * group_, group_, first_position, p_.window, p_.scale};
  }

  // Copies the queries of a tile, so that those of a head of keys stand one after the other.
  AttentionRows gather(const Tile& tile, float* queries) const {
    const int64_t dim = p_.layout.head_dim;
    for (int64_t q = 0; q < tile.num_queries; ++q) {
      std::memcpy(queries + q * group_ * dim, tile.sequence->queries + head_offset(tile, q),
                  static_cast<size_t>(group_ * dim) * 4);
    }
    return rows_of(tile, queries);
  }

  // The place of the first head of a query among the queries, and of its result among the results.
  int64_t head_offset(const Tile& tile, int64_t query) const {
    return ((tile.first_query + query) * p_.num_heads + tile.kv_head * group_) * p_.layout.head_dim;
  }

  AttentionSegment segment_of(const Tile& tile, int64_t segment) const {
    return {p_.layout, tile.sequence->pages, tile.kv_head, segment};
  }

  void finish(const Tile& tile, const AttentionRows& rows, const ThreadMemory& m) const {
    uint8_t* out = reinterpret_cast<uint8_t*>(m.out);
    kernels_.finish(rows, p_.layout, m.totals, p_.out_dtype, out);
    const int64_t value_bytes = p_.out_dtype == DType::kFloat32 ? 4 : 2;
    const int64_t query_bytes = group_ * p_.layout.head_dim * value_bytes;
    for (int64_t q = 0; q < tile.num_queries; ++q) {
      std::memcpy(tile.sequence->out + head_offset(tile, q) * value_bytes, out + q * query_bytes,
                  static_cast<size_t>(query_bytes));
    }
  }

  void run_tile(int64_t index, const ThreadMemory& m) const {
    const Tile tile = tile_at(index);
    const AttentionRows rows = gather(tile, m.queries);
    kernels_.begin(rows, p_.layout, m.totals);
    const ItemRange segments = segments_of(tile);
    for (int64_t s = segments.begin; s < segments.end && keep_going(); ++s) {
      kernels_.attend(rows, segment_of(tile, s), m.states, m.scratch);
      kernels_.merge(rows, segment_of(tile, s), m.states, m.totals);
    }
    finish(tile, rows, m);
  }

  float* states_of_item(int64_t item) const {
    return reinterpret_cast<float*>(item_states_ + item * tile_state_bytes());
  }

  void run_item(int64_t index, const ThreadMemory& m) const {
    const Tile tile = tile_at(items_[index].tile);
    kernels_.attend(gather(tile, m.queries), segment_of(tile, items_[index].segment), states_of_item(index), m.scratch);
  }

  void merge_tile(int64_t index, const ThreadMemory& m) const {
    const Tile tile = tile_at(index);
    const AttentionRows rows = rows_of(tile, nullptr);
    kernels_.begin(rows, p_.layout, m.totals);
    for (int64_t i = 0; i < num_items_; ++i) {
      if (items_[i].tile != index) continue;
      kernels_.merge(rows, segment_of(tile, items_[i].segment), states_of_item(i), m.totals);
    }
    finish(tile, rows, m);
  }

  void run_thread(int thread, int num_threads) {
    Arena arena(thread_memory_ + thread * thread_bytes_);
    ThreadMemory m;
    take_thread(&arena, &m);
    const ItemRange tiles{0, num_tiles_}, items{0, num_items_};
    if (num_items_ == 0) {
      tile_queue_.run(1, [&](int) { return tiles; }, [&](int64_t i) { run_tile(i, m); });
      return;
    }
    item_queue_.run(1, [&](int) { return items; }, [&](int64_t i) { run_item(i, m); });
    barrier_.wait(num_threads);
    tile_queue_.run(1, [&](int) { return tiles; }, [&](int64_t i) { merge_tile(i, m); });
  }

  const AttentionKernels& kernels_;
  const AttentionProblem& p_;
  const int64_t group_;  // query heads for each head of keys and values
  int64_t tile_queries_;
  int64_t num_tiles_ = 0;
  int64_t num_items_ = 0;  // 0 if no tile is split
  double products_ = 0;
  uint8_t* thread_memory_ = nullptr;
  int64_t thread_bytes_ = 0;
  SegmentItem* items_ = nullptr;
  uint8_t* item_states_ = nullptr;
  Barrier barrier_;
  WorkQueue tile_queue_, item_queue_;
};

}  // namespace

Status attention(const AttentionKernels& kernels, const AttentionProblem& problem, int num_threads) {
  return Call(kernels, problem).run(num_threads);
}

}  // namespace mxfp4moe

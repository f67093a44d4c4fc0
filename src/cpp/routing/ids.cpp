#include "routing/ids.h"

#include <cstring>

namespace mxfp4moe {
namespace {

template <class Id>
Id id_at(const IdTable& ids, int64_t row, int64_t column) {
  Id id;  // the table of a caller need not be aligned
  std::memcpy(&id, ids.data + row * ids.row_stride + column * ids.column_stride, sizeof(Id));
  return id;
}

template <class Id>
int64_t to_local(const IdTable& ids, const int64_t* expert_map, int64_t num_ids, int32_t* local) {
  for (int64_t row = 0; row < ids.rows; ++row) {
    for (int64_t column = 0; column < ids.columns; ++column) {
      int64_t expert = id_at<Id>(ids, row, column);
      const int64_t position = row * ids.columns + column;
      if (expert < -1 || expert >= num_ids) return position;
      if (expert_map != nullptr && expert >= 0) expert = expert_map[expert];
      if (local != nullptr) local[position] = static_cast<int32_t>(expert);
    }
  }
  return -1;
}

template <class Id>
IdPosition look_up(const int64_t* input_ids, int64_t num_tokens, const IdTable& table, int64_t num_experts,
                   int32_t* topk_ids) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t row = input_ids[token];
    if (row < 0 || row >= table.rows) return {token, -1};
    for (int64_t column = 0; column < table.columns; ++column) {
      const int64_t expert = id_at<Id>(table, row, column);
      if (expert < 0 || expert >= num_experts) return {token, column};
      topk_ids[token * table.columns + column] = static_cast<int32_t>(expert);
    }
  }
  return {-1, -1};
}

}  // namespace

int64_t local_ids(const IdTable& ids, const int64_t* expert_map, int64_t num_ids, int32_t* local) {
  return ids.is_int64 ? to_local<int64_t>(ids, expert_map, num_ids, local)
                      : to_local<int32_t>(ids, expert_map, num_ids, local);
}

IdPosition hash_ids(const int64_t* input_ids, int64_t num_tokens, const IdTable& table, int64_t num_experts,
                    int32_t* topk_ids) {
  return table.is_int64 ? look_up<int64_t>(input_ids, num_tokens, table, num_experts, topk_ids)
                        : look_up<int32_t>(input_ids, num_tokens, table, num_experts, topk_ids);
}

}  // namespace mxfp4moe

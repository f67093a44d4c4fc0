// Expert ids as callers have them, brought to the ids of the experts that are here.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

// A table of int32 or int64 ids with any strides.
struct IdTable {
  const uint8_t* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;  // bytes
  bool is_int64;
};

// Writes the local id of each id to `local`, [rows][columns]: -1 stays -1, and others go through `expert_map`, which
// has `num_ids` entries, unless it is null. Returns the flat position of the first id outside [-1, num_ids), or -1.
// With `local` null the ids are only checked.
int64_t local_ids(const IdTable& ids, const int64_t* expert_map, int64_t num_ids, int32_t* local)
    MXFP4MOE_EXPORTED(local_ids);

struct IdPosition {
  int64_t row, column;
};

// Looks up the experts of each token: copies row input_ids[t] of `table` to row t of `topk_ids`, [num_tokens][columns].
// Returns the token and column of the first entry outside [0, num_experts), (t, -1) if the input id of token t is no
// row of the table, or (-1, -1) if all is right.
IdPosition hash_ids(const int64_t* input_ids, int64_t num_tokens, const IdTable& table, int64_t num_experts,
                    int32_t* topk_ids) MXFP4MOE_EXPORTED(hash_ids);

}  // namespace mxfp4moe

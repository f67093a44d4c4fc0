# Routing functions. Included by _core.pyx.

def route(const float[:, ::1] logits, const float[::1] correction_bias, float[:, ::1] topk_weights,
          int32_t[:, ::1] topk_ids, int num_threads, *, int scoring, bint renormalize, bint ids_given,
          float routed_scaling_factor, int64_t num_groups, int64_t topk_group):
    """Write weights and ids by the rule that the keywords give.

    Return the first row that cannot be routed, -1 if there is none, or None if it is the bias that is wrong.
    """
    cdef cpp.InterruptibleCall call
    cdef cpp.RoutingArgs args
    cdef int64_t first_bad
    args.logits = &logits[0, 0]
    args.correction_bias = NULL
    if correction_bias is not None:
        args.correction_bias = &correction_bias[0]
    args.num_tokens = logits.shape[0]
    args.num_experts = logits.shape[1]
    args.top_k = topk_ids.shape[1]
    args.rule.scoring = <cpp.Scoring>scoring
    args.rule.renormalize = renormalize
    args.rule.ids_given = ids_given
    args.rule.routed_scaling_factor = routed_scaling_factor
    args.rule.num_groups = num_groups
    args.rule.topk_group = topk_group
    args.topk_weights = &topk_weights[0, 0]
    args.topk_ids = &topk_ids[0, 0]
    with nogil:
        first_bad = cpp.run_routing(args, num_threads)
    raise_interrupt(call)
    if first_bad == cpp.kNoRoutingMemory:
        raise MemoryError("no memory for the workspace of routing")
    return None if first_bad == cpp.kBadBias else first_bad


def hash_ids(const int64_t[::1] input_ids, const id_t[:, :] tid2eid, int64_t num_experts, int32_t[:, ::1] topk_ids):
    """Copy rows of the table. Return the token and the slot of the first entry out of range, or (-1, -1).

    An input id out of range is slot -1 of its token.
    """
    cdef cpp.IdTable table = id_table(tid2eid)
    cdef cpp.IdPosition bad
    with nogil:
        bad = cpp.look_up_ids(&input_ids[0], input_ids.shape[0], table, num_experts, &topk_ids[0, 0])
    return bad.row, bad.column

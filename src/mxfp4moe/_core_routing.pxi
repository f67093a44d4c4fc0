# Routing functions. Included by _core.pyx.

def route(const float[:, ::1] logits, const float[::1] correction_bias, rule, float[:, ::1] topk_weights,
          int32_t[:, ::1] topk_ids, int num_threads):
    """Write weights and ids by `rule`: (scoring, renormalize, ids_given, scaling factor, num_groups, topk_group).

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
    args.rule.scoring = <cpp.Scoring><int>rule[0]
    args.rule.renormalize = rule[1]
    args.rule.ids_given = rule[2]
    args.rule.routed_scaling_factor = rule[3]
    args.rule.num_groups = rule[4]
    args.rule.topk_group = rule[5]
    args.topk_weights = &topk_weights[0, 0]
    args.topk_ids = &topk_ids[0, 0]
    with nogil:
        first_bad = cpp.run_routing(args, num_threads)
    raise_interrupt(call)
    if first_bad == cpp.kNoRoutingMemory:
        raise MemoryError("no memory for the workspace of routing")
    return None if first_bad == cpp.kBadBias else first_bad


cdef (int64_t, int64_t) look_up(const int64_t[::1] input_ids, const id_t[:, :] tid2eid, int64_t num_experts,
                                int32_t[:, ::1] topk_ids) noexcept nogil:
    cdef int64_t t, s, expert
    for t in range(input_ids.shape[0]):
        if input_ids[t] < 0 or input_ids[t] >= tid2eid.shape[0]:
            return t, -1
        for s in range(tid2eid.shape[1]):
            expert = tid2eid[input_ids[t], s]
            if expert < 0 or expert >= num_experts:
                return t, s
            topk_ids[t, s] = <int32_t>expert
    return -1, -1


def hash_ids(const int64_t[::1] input_ids, const id_t[:, :] tid2eid, int64_t num_experts, int32_t[:, ::1] topk_ids):
    """Copy rows of the table. Return the token and the slot of the first entry out of range, or (-1, -1).

    An input id out of range is slot -1 of its token.
    """
    cdef (int64_t, int64_t) bad
    with nogil:
        bad = look_up(input_ids, tid2eid, num_experts, topk_ids)
    return bad

# Routing functions. Included by _core.pyx.

def route(const float[:, ::1] logits, const float[::1] correction_bias, const float[::1] expert_scale,
          float[:, ::1] topk_weights, int32_t[:, ::1] topk_ids, int num_threads, *, int scoring,
          float logit_softcap=0, float jitter_eps=0, bint ids_given=False, bint by_logit=False, int64_t num_shared=0,
          int64_t num_groups=1, int64_t topk_group=1, int group_score=0, bint zero_masked=False, bint renormalize=False,
          float norm_order=1, float norm_epsilon=1e-20, float norm_floor=0, float routed_scaling_factor=1):
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
    args.expert_scale = NULL
    if expert_scale is not None:
        args.expert_scale = &expert_scale[0]
    args.num_tokens = logits.shape[0]
    args.num_experts = logits.shape[1]
    args.num_slots = topk_ids.shape[1]
    args.rule.score.scoring = <cpp.Scoring>scoring
    args.rule.score.logit_softcap = logit_softcap
    args.rule.score.jitter_eps = jitter_eps
    args.rule.choice.ids_given = ids_given
    args.rule.choice.by_logit = by_logit
    args.rule.choice.num_shared = num_shared
    args.rule.choice.num_groups = num_groups
    args.rule.choice.topk_group = topk_group
    args.rule.choice.group_score = <cpp.GroupScore>group_score
    args.rule.choice.zero_masked = zero_masked
    args.rule.weight.renormalize = renormalize
    args.rule.weight.norm_order = norm_order
    args.rule.weight.norm_epsilon = norm_epsilon
    args.rule.weight.norm_floor = norm_floor
    args.rule.weight.routed_scaling_factor = routed_scaling_factor
    args.topk_weights = &topk_weights[0, 0]
    args.topk_ids = &topk_ids[0, 0]
    with nogil:
        first_bad = cpp.run_routing(args, num_threads)
    raise_interrupt(call)
    if first_bad == cpp.kNoRoutingMemory:
        raise MemoryError("no memory for the workspace of routing")
    return None if first_bad == cpp.kBadBias else first_bad


def hash_ids(const int64_t[::1] input_ids, tid2eid, int64_t num_experts, int32_t[:, ::1] topk_ids):
    """Copy rows of the table. Return the token and the slot of the first entry out of range, or (-1, -1).

    An input id out of range is slot -1 of its token.
    """
    cdef cpp.IdPosition bad
    if tid2eid.itemsize == sizeof(int64_t):
        bad = look_up_ids[int64_t](input_ids, tid2eid, num_experts, topk_ids)
    else:
        bad = look_up_ids[int32_t](input_ids, tid2eid, num_experts, topk_ids)
    return bad.row, bad.column


cdef cpp.IdPosition look_up_ids(const int64_t[::1] input_ids, const id_t[:, :] tid2eid, int64_t num_experts,
                                int32_t[:, ::1] topk_ids) noexcept:
    cdef cpp.IdTable table = id_table(tid2eid)
    cdef cpp.IdPosition bad
    with nogil:
        bad = cpp.look_up_ids(&input_ids[0], input_ids.shape[0], table, num_experts, &topk_ids[0, 0])
    return bad

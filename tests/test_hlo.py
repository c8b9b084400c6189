"""Collectives read from the text of compiled programs."""

from flanx.plan import hlo

PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %ag = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %ag)
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %w = (s32[], f32[8,16]{1,0}) while(%init), condition=%condition, body=%body, backend_config={TRIPS}
  %ar = f32[8,16]{1,0} all-reduce(%g), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %rs = (f32[8,16]{1,0}, f32[2,16]{1,0}) reduce-scatter-start(%g), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0)
  ROOT %cp = f32[8,16]{1,0} collective-permute(%ar), source_target_pairs={{0,1},{1,0}}
}
""".replace("{TRIPS}", '{"known_trip_count":{"n":"24"}}')


def test_collectives_of_a_program_count_loops() -> None:
    found = {c.kind: c for c in hlo.collectives(PROGRAM, 8)}
    gather = found["all-gather"]
    assert (gather.count, gather.members) == (24, (0, 1, 2, 3))
    assert gather.sent == 24 * 8 * 64 * 2 * 3 / 4
    assert found["all-reduce"].members == (0, 4)
    assert found["all-reduce"].sent == 2 * 8 * 16 * 4 / 2
    assert found["reduce-scatter"].members == (0, 2, 4, 6)
    assert found["reduce-scatter"].sent == 2 * 16 * 4 * 3
    assert found["collective-permute"].sent == 8 * 16 * 4
    assert hlo.axes_spanned((0, 4), (1, 2, 4)) == (1,)
    assert hlo.axes_spanned((0, 1, 2, 3), (1, 2, 4)) == (2,)


TPU_PROGRAM = """HloModule jit_f

%start (p: bf16[1,128]) -> bf16[1,512] {
  ROOT %ag = bf16[1,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%done (p: bf16[1,128]) -> bf16[1,512] {
  ROOT %ag.1 = bf16[1,512]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = bf16[1,512]{1,0} fusion(%x), kind=kCustom, calls=%start
  ROOT %g = (s32[], f32[8]) fusion(%f), kind=kCustom, calls=%done
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  ROOT %w = (s32[]{:T(128)}, f32[8]{0}) while(%init), condition=%condition, body=%body
}
"""


def test_a_tpu_program_counts_an_asynchronous_collective_once_per_trip() -> None:
    (gather,) = hlo.collectives(TPU_PROGRAM, 8)
    assert (gather.kind, gather.count, gather.members) == ("all-gather", 7, (0, 1, 2, 3))
    assert gather.sent == 7 * 512 * 2 * 3 / 4


TWO_SLICES = """HloModule jit_step

ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %send = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) send(%a, %t), channel_id=5, is_host_transfer=true, \
frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=6, is_host_transfer=true, \
frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_what_is_sent_between_slices_counts_over_the_replicas() -> None:
    (across,) = hlo.collectives(TWO_SLICES, 8, slices=2)
    assert (across.kind, across.count, across.members) == ("all-reduce", 1, (0, 4))
    assert across.sent == 2 * 2 * 8 * 4 / 2
    assert hlo.axes_spanned(across.members, (2, 2, 2)) == (0,)

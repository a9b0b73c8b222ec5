"""What compiled code is given: every entry takes another type or layout as it should, and refuses all else by name."""

import pytest
import torch
import unrolls
from entries import ENTRIES, B, H, M, T, Z

from zfdist.model.kernels import cpp_recurrence, triton_recurrence
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.recurrent import lstm, recurrence

LOOPS = ("native", "bptt", "graph", "chain", "chain by hand", "lstm", "persistent")
every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
every_argument = pytest.mark.parametrize(
    ("entry", "name"), [pytest.param(e, n, id=f"{k}-{n}") for k, e in ENTRIES.items() for n in e.arguments]
)


def assert_same(got, expected, tolerance=1e-12):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def layouts(value):
    """Give the same numbers transposed, as every other column, expanded if they repeat, and with a pending sign."""
    yield value.t().contiguous().t() if value.ndim == 2 else value.transpose(0, -1).contiguous().transpose(0, -1)
    yield torch.stack([value, value + 1], dim=-1)[..., 0]
    if value.is_floating_point():
        yield torch.complex(torch.zeros_like(value), -value).conj().imag


@every_argument
def test_any_layout_is_read_right(entry, name):
    expected = entry.reference(**entry.arguments)
    for value in layouts(entry.arguments[name]):
        assert_same(entry.run(**entry.arguments | {name: value}), expected)
    first = entry.arguments[name][:1].expand_as(entry.arguments[name])  # every row the first one
    assert_same(*(run(**entry.arguments | {name: first}) for run in (entry.run, entry.reference)))


@every_entry
@pytest.mark.parametrize(("wide", "other"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_data_of_another_type_are_converted(entry, wide, other):
    exact = {n: v.float().to(wide) if v.is_floating_point() else v for n, v in entry.arguments.items()}
    expected = entry.reference(**exact)
    for name in entry.data:
        got = entry.run(**exact | {name: exact[name].to(other)})
        assert_same(got, expected, 1e-12 if wide == torch.float64 else 1e-5)


@every_argument
def test_what_does_not_fit_is_refused_by_name(entry, name):
    value = entry.arguments[name]
    blamed = {"value": "numbers", "w_z_GZ": "(w_z_GZ|z_BZ)"}.get(name, name)  # who fits alone, and is asked first
    named = rf": .*\b{blamed}\b"
    for dim in range(value.ndim):
        if name in ("gx_TBG", "value_TBD") and "w_GH" in entry.arguments and dim == 0:
            continue  # nothing else has a T that it could differ from
        for size in (value.shape[dim] + 1, value.shape[dim] - 1):
            wrong = value.new_zeros([size if d == dim else n for d, n in enumerate(value.shape)])
            with pytest.raises(ValueError, match=named):
                entry.run(**entry.arguments | {name: wrong})
    with pytest.raises(ValueError, match=named):
        entry.run(**entry.arguments | {name: value[None]})
    for wrong in (value.to("meta"), value.to(torch.complex128), value.bool()):
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b|value should be .*, is|for torch.\w* on cpu"):
            entry.run(**entry.arguments | {name: wrong})
    if value.is_floating_point():
        with pytest.raises(TypeError, match=rf"\b{name}\b|for torch.int64 on cpu|value should be torch.int64"):
            entry.run(**entry.arguments | {name: value.long()})
    if name.startswith(("w_", "b_")):  # of two weights, one is of another type
        others = [n for n in entry.arguments if n.startswith(("w_", "b_")) and n != name]
        for weight in others[:1]:
            with pytest.raises(TypeError, match=rf"\b(?:{name}|{weight}) should be torch.float(?:32|64) as"):
                entry.run(**entry.arguments | {name: value.float()})


@pytest.mark.parametrize("name", ["native", "chain", "lstm", "step", "density"])
def test_all_on_another_device_is_refused(name):
    entry = ENTRIES[name]
    with pytest.raises(TypeError, match=r"on a CPU, not for torch.float64 on meta"):
        entry.run(**{n: v.to("meta") for n, v in entry.arguments.items()})


@pytest.mark.parametrize("name", LOOPS)
def test_no_step_is_refused_and_no_sequence_gives_nothing(name):
    entry = ENTRIES[name]
    with pytest.raises(ValueError, match="no steps to run, T = 0"):
        entry.run(**{n: v[:0] if "_TB" in n else v for n, v in entry.arguments.items()})
    if name == "persistent":
        return  # cuDNN's and torch's own LSTM take no empty batch
    empty = {n: v[:, :0] if "_TB" in n else v[:0] if "_B" in n else v for n, v in entry.arguments.items()}
    leaves = {n: v.clone().requires_grad_("eps" not in n) for n, v in empty.items()}
    outputs = entry.run(**leaves)
    assert all(o.numel() == 0 for o in outputs)
    grads = torch.autograd.grad(sum(o.sum() for o in outputs), [v for v in leaves.values() if v.requires_grad])
    assert all(not g.any() for g in grads)


def test_lengths_of_any_whole_type_are_read_right():
    given = {**ENTRIES["lstm"].arguments}
    w_GH, gx_TBG, state = given["w_GH"], given["gx_TBG"], State(given["h_BH"], given["c_BH"])
    expected = lstm._sweeps(gx_TBG, state, w_GH, torch.tensor([2, 3, 1]))
    for lengths in (torch.tensor([2, 3, 1], dtype=torch.int32), torch.tensor([2, 0, 3, 0, 1])[::2]):
        assert_same(lstm._sweeps(gx_TBG, state, w_GH, lengths), expected)
    for wrong, error in (
        (torch.tensor([2.0, 3.0, 1.0]), TypeError),
        (torch.tensor([2]), ValueError),
        ([2, 3], TypeError),
    ):
        with pytest.raises(error, match=r"LSTM: .*lengths_B"):
            lstm._sweeps(gx_TBG, state, w_GH, wrong)


@pytest.mark.parametrize("name", ["native", "bptt", "graph", "chain", "chain by hand", "lstm", "tokens"])
def test_gradients_of_any_layout_and_type_are_read_right(name):
    entry = ENTRIES[name]
    leaves = {n: v.clone().requires_grad_(v.is_floating_point() and "eps" not in n) for n, v in entry.arguments.items()}
    inputs = [v for v in leaves.values() if v.requires_grad]

    def derived(run, change):
        outputs = run(**leaves)
        mix = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype).float().double().view_as(o) for o in outputs]
        return torch.autograd.grad(outputs, inputs, [change(m) for m in mix])

    changes = [lambda m: m.float(), lambda m: next(layouts(m)), lambda m: torch.stack([m, m], -1)[..., 1]]
    plain = derived(entry.reference, lambda m: m)
    for change in changes:
        assert_same(derived(entry.run, change), plain)
    first = [derived(run, lambda m: m[:1].expand_as(m)) for run in (entry.run, entry.reference)]
    assert_same(*first)


@pytest.mark.parametrize("name", ["native", "bptt", "graph", "chain", "chain by hand", "lstm", "tokens"])
def test_gradients_given_directly_are_converted_or_refused(name):
    entry = ENTRIES[name]
    leaves = {n: v.clone().requires_grad_(v.is_floating_point() and "eps" not in n) for n, v in entry.arguments.items()}
    for change in (lambda g: g.float(), lambda g: g[:1].expand_as(g)):
        outputs = entry.run(**leaves)
        given = [torch.ones_like(o) for o in outputs]
        node = outputs[0].grad_fn
        expected = [None if g is None else g.clone() for g in node.apply(*given)]
        changed = node.apply(*(change(g) for g in given))
        for a, b in zip(changed, expected, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    for wrong in (lambda g: g[:-1], lambda g: g.to("meta"), lambda g: g.long()):
        outputs = entry.run(**leaves)
        with pytest.raises((TypeError, ValueError), match=r"gradient of .* should be"):
            outputs[0].grad_fn.apply(*(wrong(torch.ones_like(o)) for o in outputs))


def test_every_implementation_of_a_module_takes_noise_of_another_type_and_refuses_the_same():
    case = recurrence.Recurrence(H, Z, M, 8.0).double()
    core = unrolls.arguments(T, B, H, Z, M)
    state = State(core.h_BH, core.c_BH)
    for name in ("reference", "bptt", "native"):
        case.implementation = name
        narrow = case(core.gx_TBG, core.qb_TBM, core.eps_TBZ.float(), state)
        same = case(core.gx_TBG, core.qb_TBM, core.eps_TBZ.float().double(), state)
        assert all(torch.equal(a, b) for a, b in zip(narrow[:4], same[:4], strict=True))
        with pytest.raises(ValueError, match=r"recurrence: .*eps_TBZ"):
            case(core.gx_TBG, core.qb_TBM, core.eps_TBZ[:, :1], state)


def test_a_message_says_what_does_not_go_together():
    core = unrolls.arguments(T, B, H, Z, M)
    with pytest.raises(ValueError, match=r"gx_TBG should be \[T, B, G\] = \[4, 3, 16\], is \[4, 3, 15\]; H is that of"):
        cpp_recurrence.unroll(core._replace(gx_TBG=core.gx_TBG[..., 1:]))
    with pytest.raises(TypeError, match="recurrence: eps_TBZ should be a tensor, is NoneType"):
        cpp_recurrence.unroll(core._replace(eps_TBZ=None))


def test_kernels_of_triton_refuse_before_they_are_launched():
    core = unrolls.arguments(T, B, H, Z, M)
    for name in core._fields[:10]:
        wrong = getattr(core, name)[..., :-1]
        with pytest.raises(ValueError, match=rf"recurrence: .*\b{name}\b"):
            triton_recurrence.unroll(core._replace(**{name: wrong}))

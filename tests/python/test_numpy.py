"""NumPy arrays, and others by DLPack, without PyTorch: this file runs in an environment that has none, too."""

import ctypes
import gc
import threading

import hla
import numpy
import pytest

B, TQ, TK, H, HKV, V, RANKS = 2, 11, 14, 4, 2, 5, (4, 3)


def arrays(dtype=numpy.float32):
    random = numpy.random.default_rng(0)
    q = [random.uniform(0.05, 1, (B, TQ, H, R)).astype(dtype) for R in RANKS]
    k = [random.uniform(0.05, 1, (B, TK, HKV, R)).astype(dtype) for R in RANKS]
    return q, k, random.standard_normal((B, TK, HKV, V)).astype(dtype)


def definition(q, k, v, causal=False):
    """out and state in float64."""
    q, k, v = [x.astype(float) for x in q], [x.astype(float) for x in k], v.astype(float)
    scores = numpy.tri(TQ, TK)[None, None] if causal else 1.0
    for a, c in zip(q, k):
        scores = scores * numpy.einsum("bihr,bjhr->bhij", a, c.repeat(H // HKV, 2))
    out = numpy.einsum("bhij,bjhx->bihx", scores, v.repeat(H // HKV, 2))
    ones = numpy.concatenate([v, numpy.ones_like(v[..., :1])], -1)
    state = numpy.einsum("bjhr,bjhs,bjhx->bhrsx", *k, ones).reshape(B, HKV, -1, V + 1)
    return out / (scores.sum(-1).swapaxes(1, 2)[..., None] + 1e-6), state


def error(got, want):
    return numpy.linalg.norm(got - want) / numpy.linalg.norm(want)


@pytest.mark.parametrize("causal", [False, True])
def test_definition(causal):
    q, k, v = arrays()
    out, state = hla.hadamard_attention(q, k, v, causal=causal, return_state=True)
    want, want_state = definition(q, k, v, causal)
    assert type(out) is numpy.ndarray and out.dtype == numpy.float32 and out.shape == (B, TQ, H, V)
    assert error(out, want) <= 1e-6 and error(state, want_state) <= 1e-6


def test_float16():
    q, k, v = arrays(numpy.float16)
    out = hla.hadamard_attention(q, k, v)
    assert out.dtype == numpy.float16 and error(out, definition(q, k, v)[0]) <= 2e-3


def test_layouts():
    """Transposed, reversed and read-only arrays, where they lie."""
    q, k, v = arrays()
    want = definition(q, k, v)[0]
    q = [numpy.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in q]
    k = [numpy.ascontiguousarray(x[:, ::-1])[:, ::-1] for x in k]
    assert k[0].strides[1] < 0
    assert error(hla.hadamard_attention(q, k, v), want) <= 1e-6


def test_read_only():
    q, k, v = arrays()
    v.flags.writeable = False
    if tuple(map(int, numpy.__version__.split(".")[:2])) < (2, 1):
        with pytest.raises(BufferError, match="readonly"):  # such a NumPy does not lend them by DLPack
            hla.hadamard_attention(q, k, v)
    else:
        assert error(hla.hadamard_attention(q, k, v), definition(q, k, v)[0]) <= 1e-6


class Lent:
    """An array of nobody's library, which only speaks DLPack, as the older versions of it do."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack():
    q, k, v = arrays()
    out = hla.hadamard_attention([Lent(x) for x in q], [Lent(x) for x in k], Lent(v))
    assert error(out, definition(q, k, v)[0]) <= 1e-6


class Packed:
    """The least that DLPack allows: no strides where elements lie in order, and an offset from an aligned address."""

    def __init__(self, array):
        class Tensor(ctypes.Structure):  # DLManagedTensor without what a producer needs
            _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                        ("byte_offset", ctypes.c_uint64)]  # fmt: skip

        self.array, self.shape = numpy.ascontiguousarray(array), (ctypes.c_int64 * array.ndim)(*array.shape)
        self.tensor = Tensor(self.array.ctypes.data - 64, (1, 0), array.ndim, 2, 32, 1, ctypes.addressof(self.shape),
                             None, 64)  # fmt: skip

    def __dlpack__(self, stream=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def test_dlpack_without_strides():
    q, k, v = arrays()
    out = hla.hadamard_attention([Packed(x) for x in q], [Packed(x) for x in k], Packed(v))
    assert error(out, definition(q, k, v)[0]) <= 1e-6


def test_offsets_and_states():
    q, k, v = arrays()
    lengths = numpy.array([9, 14], numpy.int32)
    out, state = hla.hadamard_attention(q, k, v, key_lengths=lengths, return_state=True)
    first = hla.hadamard_attention([x[:1] for x in q], [x[:1, :9] for x in k], v[:1, :9])
    assert error(out[:1], first) <= 1e-6
    rest, _ = hla.hadamard_attention(
        q, [x[:, 9:] for x in k], v[:, 9:], key_lengths=[0, 5], return_state=True,
        initial_state=hla.hadamard_attention(q, [x[:, :9] for x in k], v[:, :9], return_state=True)[1],
    )  # fmt: skip
    assert error(rest, out) <= 1e-6


@pytest.mark.parametrize(
    "change, kind, sentence",
    [
        ({"v": [[1.0]]}, TypeError, "v is a list, wanted a NumPy array"),
        ({"v": numpy.zeros((B, TK, HKV, V))}, TypeError, "v is of dtype float64, wanted float32"),
        ({"v": numpy.zeros((B, TK, V), numpy.float32)}, ValueError, "v has 3 axes, wanted 4"),
        ({"k_features": []}, ValueError, "hold 2 and 0 arrays"),
        ({"key_lengths": [1.5, 2]}, TypeError, "key_lengths is of dtype float64, wanted integers"),
        ({"key_lengths": [1, 2, 3]}, ValueError, r"key_lengths has shape \[3\], wanted \[2\]"),
        ({"initial_state": numpy.zeros((B, HKV, 12, V + 1))}, TypeError, "initial_state is of dtype float64"),
        ({"initial_state": numpy.zeros((1, 1), numpy.float32)}, ValueError, "initial_state has shape"),
    ],
    ids=range(8),
)
def test_bad_arguments(change, kind, sentence):
    q, k, v = arrays()
    with pytest.raises(kind, match=sentence):
        hla.hadamard_attention(**{"q_features": q, "k_features": k, "v": v, **change})


def test_feature_map():
    random = numpy.random.default_rng(1)
    x, weight, bias = (random.standard_normal(s).astype("f") for s in ((B, TQ, H, 6), (H, 5, 6), (H, 5)))
    u = numpy.einsum("bthd,hrd->bthr", x.astype(float), weight) + bias
    assert error(hla.feature_map(x, weight, bias, floor=0.25), numpy.maximum(u, 0) + 0.25) <= 1e-6
    assert error(hla.feature_map(x, weight, bias, activation="exp", shift=1.0), numpy.exp(u - 1)) <= 1e-6


def part(features, a, b):
    return [x[:, a:b] for x in features]


def new_state(**options):
    return hla.State(batch=B, heads=H, kv_heads=HKV, value_dim=V, ranks=RANKS, **options)


def test_state():
    """Steps of any length against one causal pass by the definition; data, tokens, memory."""
    q, k, v = arrays()
    want, _ = definition(q, k, v, causal=True)
    state = new_state()
    outs = [state.step(part(q, a, b), part(k, a, b), v[:, a:b]) for a, b in ((0, 4), (4, 5), (5, TQ))]
    assert error(numpy.concatenate(outs, 1), want) <= 1e-6
    state.append(part(k, TQ, TK), v[:, TQ:])
    assert state.tokens == TK and state.device == "the CPU" and state.memory >= state.data.nbytes
    assert error(state.data, definition(q, k, v)[1]) <= 1e-6
    assert error(state.query(q), definition(q, k, v)[0]) <= 1e-6


def test_states_as_a_whole():
    q, k, v = arrays()
    one, other = new_state(), new_state()
    one.append(part(k, 0, 6), v[:, :6])
    other.append(part(k, 6, TK), v[:, 6:])
    copy = one.clone()
    one.merge(other)
    assert one.tokens == TK and error(one.query(q), definition(q, k, v)[0]) <= 1e-6
    loaded = hla.State.load(one.save())
    assert (loaded.data == one.data).all() and loaded.tokens == TK
    loaded.decay([1.0, 0.5])
    assert (loaded.data == one.data * numpy.array([1, 0.5], "f")[:, None, None]).all()
    copy.decay(0.0)
    assert (copy.data == 0).all()
    one.reset()
    assert one.tokens == 0 and (one.query(q) == 0).all()
    data = other.data
    data *= 2  # the memory is the state's, and outlives it
    twice = other.save()
    del other
    gc.collect()
    assert (hla.State.load(twice).data == data).all()


def test_states_and_bad_arguments():
    q, k, v = arrays()
    state = new_state()
    state.append(k, v)
    saved = state.save()
    for call, kind, sentence in (
        (lambda: new_state(dtype="float64"), TypeError, "dtype is float64"),
        (lambda: hla.State(batch=1, heads=3, kv_heads=2, value_dim=1, ranks=[1]), ValueError, "kv_heads is 2"),
        (lambda: hla.State(batch=1, heads=1, value_dim=1, ranks=[1] * 5), ValueError, r"ranks are \[1, 1, 1, 1, 1\]"),
        (lambda: state.query(q[:1]), ValueError, "q_features holds 1 arrays, wanted one for each of 2 factors"),
        (lambda: state.append(k, v[:, :3]), ValueError, "has shape"),
        (lambda: state.step(q, k, v), ValueError, "has shape"),  # 11 queries, 14 keys
        (lambda: state.decay(1.5), ValueError, "gamma"),
        (lambda: state.decay([1.0]), ValueError, "gamma holds 1 numbers"),
        (lambda: state.merge(v), TypeError, "other is a ndarray"),
        (lambda: hla.State.load(saved[:-1]), ValueError, "data holds"),
        (lambda: hla.State.load(saved[:300] + b"x" + saved[301:]), ValueError, "checksum"),
        (lambda: hla.State.load("HLASTATE"), TypeError, "saved is a str"),
    ):
        with pytest.raises(kind, match=sentence):
            call()
    assert state.save() == saved


def test_threads():
    """Python threads compute side by side, each in a context of its own that goes with it."""
    q, k, v = arrays()
    want, wrong = hla.hadamard_attention(q, k, v), []

    def call():
        for _ in range(20):
            if not (hla.hadamard_attention(q, k, v) == want).all():
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

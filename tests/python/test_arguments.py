"""What bad arguments get: the exception and the sentence. Outputs are the package's own, so none is half written."""

import pytest

torch = pytest.importorskip("torch")
import hla  # noqa: E402

B, T, H, V = 2, 5, 4, 3


def good():
    return {
        "q_features": [torch.rand(B, T, H, R) for R in (3, 2)],
        "k_features": [torch.rand(B, T, 2, R) for R in (3, 2)],
        "v": torch.rand(B, T, 2, V),
    }


PACKED = {"query_starts": [0, T], "key_starts": [0, T]}
CASES = [
    (dict(q_features=torch.rand(B, T, H, 3)), TypeError, "q_features is a Tensor, wanted a list"),
    (dict(q_features=[]), ValueError, "q_features and k_features hold 0 and 2 arrays"),
    (dict(q_features=[torch.rand(B, T, H, 3)]), ValueError, "hold 1 and 2 arrays"),
    (dict(q_features=[torch.rand(B, T, H, 3), [1.0]]), TypeError, r"q_features\[1\] is a list"),
    (dict(q_features=[torch.rand(B, T, H, 300), torch.rand(B, T, H, 2)]), ValueError, "rank"),
    (dict(q_features=[torch.rand(B, T, H, 3), torch.rand(B, T, 3, 2)]), ValueError, r"q_features\[1\] has shape"),
    (dict(k_features=[torch.rand(B, T, 2, 3), torch.rand(B, T, 2, 4)]), ValueError, r"k_features\[1\] has shape"),
    (dict(k_features=[torch.rand(B, T, 3, R) for R in (3, 2)]), ValueError, "kv_heads is 3"),
    (dict(v=torch.rand(B, T, V)), ValueError, "v has 3 axes, wanted 4"),
    (dict(v=torch.rand(B, T + 1, 2, V)), ValueError, "v has shape"),
    (dict(v=torch.rand(B, T, 2, V).double()), TypeError, "v is of dtype torch.float64, wanted float32"),
    (dict(v=torch.rand(B, T, 2, V).half()), ValueError, "v has dtype"),
    (dict(key_lengths=[1]), ValueError, r"key_lengths has shape \[1\], wanted \[2\]"),
    (dict(key_lengths=[1, T + 1]), ValueError, r"key_lengths\[1\] is 6"),
    (dict(key_lengths=torch.tensor([1.0, 2.0])), TypeError, "key_lengths is of dtype torch.float32"),
    (dict(PACKED), ValueError, "batch"),
    (dict(query_starts=[0, T]), ValueError, "query_starts and key_starts go together"),
    (dict(query_starts=[0], key_starts=[0]), ValueError, "query_starts holds 1 numbers"),
    (dict(initial_state=torch.rand(B, 2, 6, V)), ValueError, "initial_state has shape"),
    (dict(initial_state=torch.rand(B, 2, 6, V + 1).double()), TypeError, "initial_state is of dtype torch.float64"),
    (dict(initial_state=[1.0]), TypeError, "initial_state is a list"),
    (dict(epsilon=-1.0), ValueError, "epsilon"),
    (dict(epsilon=float("nan")), ValueError, "epsilon"),
]


@pytest.mark.parametrize("change, kind, sentence", CASES, ids=range(len(CASES)))
def test_hadamard_attention(change, kind, sentence):
    with pytest.raises(kind, match=sentence):
        hla.hadamard_attention(**{**good(), **change})
    hla.hadamard_attention(**good())  # and nothing is left behind


MAP_CASES = [
    (dict(weight=torch.rand(H, 6)), ValueError, "weight has 2 axes"),
    (dict(weight=torch.rand(H, 3, 7)), ValueError, r"weight has shape \[4, 3, 7\], wanted \[4, 3, 6\]"),
    (dict(weight=[1.0]), TypeError, "weight is a list"),
    (dict(bias=torch.rand(3)), ValueError, "bias has shape"),
    (dict(hidden_bias=torch.rand(H, 6)), ValueError, "hidden_bias is given without hidden_weight"),
    (dict(hidden_weight=torch.rand(H, 6, 5)), ValueError, "hidden_weight has shape"),
    (dict(rope=torch.rand(T, 3)), ValueError, "rope has shape"),
    (dict(activation="gelu"), ValueError, "activation is 'gelu'"),
    (dict(floor=float("nan")), ValueError, "floor"),
    (dict(x=torch.rand(B, T, H)), ValueError, "x has 3 axes"),
    (dict(x=torch.rand(B, T, H, 6).double()), TypeError, "x is of dtype"),
]


@pytest.mark.parametrize("change, kind, sentence", MAP_CASES, ids=range(len(MAP_CASES)))
def test_feature_map(change, kind, sentence):
    arguments = {"x": torch.rand(B, T, H, 6), "weight": torch.rand(H, 3, 6)}
    with pytest.raises(kind, match=sentence):
        hla.feature_map(**{**arguments, **change})


@pytest.mark.parametrize(
    "change, sentence",
    [(dict(ranks=[]), "ranks are"), (dict(ranks=[257]), "ranks are"), (dict(rope="during"), "rope is 'during'"),
     (dict(activation="gelu"), "activation is 'gelu'")], ids=range(4),
)  # fmt: skip
def test_module(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        hla.HadamardAttention(2, 4, **{"ranks": [2], **change})

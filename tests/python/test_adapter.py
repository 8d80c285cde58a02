"""The directory hla/: written and read back, read where others wrote it, and damaged in every way."""

import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
import hla.diffusers  # noqa: E402
from conftest import ROOT  # noqa: E402
from torch import nn  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "dit"


class Softmax:
    """In the place of WanAttnProcessor."""


class Attention(nn.Module):
    """What hla.diffusers touches of WanAttention."""

    _default_processor_cls = Softmax

    def __init__(self, heads, width):
        super().__init__()
        self.heads, self.inner_dim = heads, heads * width
        self.to_q = nn.Linear(self.inner_dim, self.inner_dim)
        self.processor = Softmax()

    def set_processor(self, processor):
        self._modules.pop("processor", None)
        self.processor = processor


def transformer(blocks=4, heads=2, width=12):
    model = nn.Module()
    model.blocks = nn.ModuleList()
    for _ in range(blocks):
        block = nn.Module()
        block.attn1 = Attention(heads, width)
        model.blocks.append(block)
    return model


BLOCKS = [
    {"ranks": [4, 3]}, None, {"ranks": [5], "activation": "exp", "bias": False}, {"ranks": [2, 2], "hidden": True},
]  # fmt: skip


def test_saved_and_loaded(tmp_path):
    model = transformer()
    made = hla.diffusers.set_attention(model, BLOCKS)
    assert [attention is None for attention in made] == [False, True, False, False]
    hla.diffusers.save_adapter(model, tmp_path, with_weights=["blocks.1.attn1.to_q.bias"])
    other = transformer()
    hla.diffusers.load_adapter(other, tmp_path)
    names = hla.diffusers.map_tensors(model)
    assert set(names) == set(safetensors.load_file(tmp_path / "model.safetensors")) - {"blocks.1.attn1.to_q.bias"}
    for name, tensor in hla.diffusers.map_tensors(other).items():
        assert torch.equal(tensor, names[name])
    assert torch.equal(other.blocks[1].attn1.to_q.bias, model.blocks[1].attn1.to_q.bias)
    assert not torch.equal(other.blocks[0].attn1.to_q.bias, model.blocks[0].attn1.to_q.bias)
    assert isinstance(other.blocks[1].attn1.processor, Softmax)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_in_bfloat16(tmp_path):
    model = transformer()
    hla.diffusers.set_attention(model, BLOCKS)
    hla.diffusers.save_adapter(model, tmp_path, dtype=torch.bfloat16)
    assert {x.dtype for x in safetensors.load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    hla.diffusers.load_adapter(model, tmp_path)
    assert all(x.dtype == torch.float32 for x in hla.diffusers.map_tensors(model).values())


def test_number_of_blocks():
    with pytest.raises(ValueError, match="blocks has 1 entries, wanted 4"):
        hla.diffusers.set_attention(transformer(), [None])
    with pytest.raises(ValueError, match="with_weights has nothing.bias"):
        hla.diffusers.save_adapter(transformer(), "/nonexistent", with_weights=["nothing.bias"])


def config(change):
    def damage(folder):
        file = folder / "config.json"
        root = json.loads(file.read_text())
        change(root)
        file.write_text(json.dumps(root))

    return damage


def tensors(change):
    def damage(folder):
        file = folder / "model.safetensors"
        held = safetensors.load_file(file)
        change(held)
        safetensors.save_file(held, file)

    return damage


def shortened(name, by):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-by])

    return damage


NAME = "blocks.0.attn1.query_map.1.weight"
DAMAGES = [
    (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors does not exist"),
    (shortened("config.json", 5), ValueError, "config.json is not JSON"),
    (shortened("model.safetensors", 1), ValueError, "model.safetensors is damaged"),
    (shortened("model.safetensors", 10**4), ValueError, "model.safetensors is damaged"),
    (config(lambda root: root.pop("_class_name")), ValueError, "_class_name"),
    (config(lambda root: root.update(format_version=2)), ValueError, "'format_version' is 2, and this version reads 1"),
    (config(lambda root: root.update(num_layers=9)), ValueError, "'num_layers' is 9, and 'blocks' has 4 entries"),
    (config(lambda root: root.update(blocks=[])), ValueError, "'blocks' must be an array"),
    (config(lambda root: root["blocks"].pop() and root.pop("num_layers")), ValueError, "has 3 entries, wanted 4"),
    (config(lambda root: root["blocks"][0].update(kind="cosine")), ValueError, r"blocks\[0\] must be an object"),
    (config(lambda root: root["blocks"][0].update(rank=3)), ValueError, r"blocks\[0\]: 'rank' is not a key"),
    (config(lambda root: root["blocks"][1].update(ranks=[3])), ValueError, r"blocks\[1\]: 'ranks' is not a key"),
    (config(lambda root: root["blocks"][0].pop("ranks")), ValueError, r"blocks\[0\]: 'ranks' must be an array"),
    (config(lambda root: root["blocks"][0].update(ranks=[1000])), ValueError, r"ranks are \[1000\]"),
    (config(lambda root: root["blocks"][0].update(ranks=[4, 4])), ValueError, r"is \[2, 3.*\], wanted \[2, 4.*\]"),
    (config(lambda root: root["blocks"][0].update(hidden=1)), ValueError, "'hidden' is 1, wanted something like false"),
    (config(lambda root: root["blocks"][0].update(epsilon=True)), ValueError, r"'epsilon' is true, wanted something"),
    (config(lambda root: root["blocks"][0].update(activation="gelu")), ValueError, "activation is 'gelu'"),
    (config(lambda root: root["blocks"][0].update(rope="during")), ValueError, "rope is 'during'"),
    (tensors(lambda held: held.pop(NAME)), ValueError, f"lacks {NAME}"),
    (tensors(lambda held: held.update(other=held[NAME].clone())), ValueError, "has other, neither a map"),
    (tensors(lambda held: held.update({NAME: held[NAME][:1].clone()})), ValueError, f"{NAME} is "),
]


@pytest.mark.parametrize("damage, kind, sentence", DAMAGES, ids=range(len(DAMAGES)))
def test_damaged(damage, kind, sentence, tmp_path):
    """The sentence names the file, and the transformer stays what it was."""
    source = transformer()
    hla.diffusers.set_attention(source, BLOCKS)
    hla.diffusers.save_adapter(source, tmp_path)
    damage(tmp_path)
    model = transformer()
    before = [block.attn1.processor for block in model.blocks]
    with pytest.raises(kind, match=sentence):
        hla.diffusers.load_adapter(model, tmp_path)
    assert [block.attn1.processor for block in model.blocks] == before


def test_golden_adapters_are_read():
    """Those of the engine's tests, made without this package."""
    for name, blocks in (("hla_mixed", 4), ("hla_variants", 4), ("many_tokens", 2)):
        shape = json.loads((GOLDEN / name / "transformer" / "config.json").read_text())
        read, held = hla.adapter.read(GOLDEN / name / "hla")
        assert len(read) == blocks
        for i, block in enumerate(read):
            if block is not None:
                made = hla.HadamardAttention(shape["num_attention_heads"], shape["attention_head_dim"], **block)
                for key, parameter in made.named_parameters():
                    assert held[f"blocks.{i}.attn1.{key}"].shape == parameter.shape


def test_what_the_processor_refuses():
    processor = hla.diffusers.HadamardProcessor(hla.HadamardAttention(2, 4, [2]))
    x = torch.zeros(1, 3, 8)
    for argument in ("encoder_hidden_states", "attention_mask"):
        with pytest.raises(ValueError, match=f"{argument} is given"):
            processor(SimpleNamespace(), x, **{argument: x})

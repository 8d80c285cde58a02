"""python -m hla.convert on a tiny random checkpoint: whole, cut off and taken up again, and given what it cannot use.

Needs diffusers, transformers, accelerate and ffmpeg; skipped without them.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
for package in ("diffusers", "transformers", "accelerate", "safetensors"):
    pytest.importorskip(package)
if shutil.which("ffmpeg") is None:
    pytest.skip("no ffmpeg", allow_module_level=True)
import hla.diffusers  # noqa: E402
from conftest import ROOT  # noqa: E402
from hla.convert import __main__ as command  # noqa: E402
from hla.convert import candidates, choose, clips, record  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

MODEL = ROOT / "tests" / "golden" / "pipeline" / "softmax"
SMALL = (
    "--width 64 --height 48 --frames 9 --candidates 2x2 3x3-softplus --records 8 --queries 16 --distil-steps 20 "
    "--tune-steps 8 --batch 2 --budget 0.45 --probes 4 --samples 1 --sampling-steps 2 --device cpu"
).split()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, source in enumerate(["testsrc", "smptebars", "rgbtestsrc", "testsrc2"]):
        call = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"{source}=s=80x48:r=16:d=1", folder / f"{i}.mp4"]
        subprocess.run(call, check=True)
        (folder / f"{i}.txt").write_text(f"a red car drives to the right {i}\n")
    return folder


def arguments(work, videos, *more):
    paths = [MODEL, "--clips", videos, "--work", work, "--output", work / "hla"]
    return [str(x) for x in (*paths, *SMALL, *more)]


@pytest.fixture(scope="module")
def converted(videos, tmp_path_factory):
    work = tmp_path_factory.mktemp("whole")
    assert command.main(arguments(work, videos)) == 0
    return work


def test_whole(converted):
    """The adapter loads, keeps to the budget, and is nearer to the teacher than before tuning."""
    from diffusers import WanTransformer3DModel

    choice = json.loads((converted / "choose" / "choice.json").read_text())
    result = json.loads((converted / "tune" / "result.json").read_text())
    assert choice["share"] <= 0.45
    assert choice["tokens"] == 3 * 3 * 4
    assert any(name != candidates.SOFTMAX for name in choice["blocks"])
    assert result["distance"] < choice["distance"]
    made = hla.diffusers.load_adapter(WanTransformer3DModel.from_pretrained(MODEL / "transformer"), converted / "hla")
    assert [attention is None for attention in made] == [name == candidates.SOFTMAX for name in choice["blocks"]]
    page = (converted / "report" / "index.html").read_text()
    assert page.count("<img") == 2 and page.count("<svg") == 3


def test_killed_and_run_again(converted, videos, tmp_path):
    """Bit for bit what a run in one go gives, wherever the cut was: after the maps of a block, and amid tuning."""
    call = [sys.executable, "-m", "hla.convert", *arguments(tmp_path, videos, "--save-seconds", "0")]
    for sign in ("distil/block_00.safetensors", "tune/state.pt"):
        process = subprocess.Popen(call, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
        deadline = time.monotonic() + 100
        while not (tmp_path / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / sign).exists()
    assert command.main(arguments(tmp_path, videos)) == 0
    whole, resumed = (load_file(work / "hla" / "model.safetensors") for work in (converted, tmp_path))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("train", ["maps", "lora", "all"])
def test_what_is_trained(train, converted, tmp_path, videos):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tune")
    assert command.main(arguments(tmp_path, videos, "--train", train, "--stages", "tune")) == 0
    names = [name for name in load_file(tmp_path / "hla" / "model.safetensors") if "_map." not in name]
    own = load_file(MODEL / "transformer" / "diffusion_pytorch_model.safetensors")
    wanted = {
        "maps": [],
        "lora": [n for n in own if n.endswith("weight") and (".attn1.to" in n or ".ffn." in n)],
        "all": list(own),
    }  # fmt: skip
    assert sorted(names) == sorted(wanted[train])


def test_records_hold_what_attention_gives(converted):
    """Softmax attention in float64 over a record's q, k, v and table is the output recorded."""
    held = load_file(converted / "record" / "0003.safetensors")
    for i in range(2):
        q, k, v, out = (held[f"{i}.{name}"].double() for name in ("q", "k", "v", "out"))

        def turned(x, rope):
            a, b = x[..., 0::2], x[..., 1::2]
            cos, sin = rope[:, None, :, 0].double(), rope[:, None, :, 1].double()
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        q, k = turned(q, held["rope"][held["rows"]]), turned(k, held["rope"])
        scores = torch.einsum("nhd,thd->hnt", q, k) / q.shape[-1] ** 0.5
        want = torch.einsum("hnt,thd->nhd", scores.softmax(-1), v)
        error = (out - want).norm() / want.norm()
        assert error <= 2e-2  # all of it was rounded to bfloat16


def test_knapsack_is_exact():
    """Against all choices, with random losses and costs."""
    rng = random.Random(1)
    for trial in range(20):
        names = ["a", "b", "c", "softmax"]
        shares = {"a": rng.uniform(0, 0.2), "b": rng.uniform(0.1, 0.4), "c": rng.uniform(0.2, 0.6), "softmax": 1.0}
        losses = [{**{n: rng.random() for n in "abc"}, "softmax": 0.0} for _ in range(4)]
        losses[trial % 4]["a"] = float("nan")
        budget = 0.7
        picked = choose.knapsack(losses, shares, budget)
        sums = []
        for some in itertools.product(names, repeat=4):
            if sum(shares[n] for n in some) / 4 <= budget * (1 - 4 / choose.UNITS):
                sums.append(sum(block[n] for block, n in zip(losses, some)))
        assert sum(shares[n] for n in picked) / 4 <= budget
        assert sum(block[n] for block, n in zip(losses, picked)) <= min(s for s in sums if s == s) + 1e-12
    with pytest.raises(ValueError, match="--budget 0.01 is less than the cheapest"):
        choose.knapsack([{"b": 1.0}], {"b": 0.5}, 0.01)


def test_operations():
    """Section 6 of docs/OPERATOR.md: without maps 2 x 32 takes 1/32 of softmax at Wan's 32,760 tokens of width 128."""
    T, D = 32760, 128
    maps = 4 * T * D * 64
    state = candidates.operations("32x32", T, D) - maps
    assert abs(state / candidates.softmax_operations(T, D) * 32 - 1) <= 0.01
    assert candidates.operations("2x2-hidden", T, D) - candidates.operations("2x2", T, D) == 4 * T * D * D * 2


def test_spread_visits_every_part_once():
    for n in (1, 2, 7, 8, 64, 100):
        assert sorted((clips.spread(n) * n - 0.5).round().int().tolist()) == list(range(n))
    assert record.is_judge(7) and not record.is_judge(0)


def refused(capsys, call, *sentences):
    try:
        status = command.main(call)
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr().err
    assert status != 0
    assert all(sentence in said for sentence in sentences), said


def test_refused(converted, videos, tmp_path, capsys):
    def call(*more):
        return arguments(tmp_path / "work", videos, *more)

    refused(capsys, call("--candidates", "16y16"), "candidate '16y16' must begin with ranks")
    refused(capsys, call("--candidates", "2x2-gelu"), "'gelu' is neither an activation nor")
    refused(capsys, call("--candidates", "softmax"), "candidate 'softmax' is always there")
    refused(capsys, call("--budget", "0"), "--budget is 0.0")
    refused(capsys, call("--records", "1"), "--records is 1, wanted 8 or more")
    refused(capsys, call("--stages", "paint"), "--stages is 'paint'")
    refused(capsys, call("--stages", "tune"), "choice.json does not exist: run the stage choose first")
    refused(capsys, call("--frames", "99"), "frames at 16 a second, wanted 99")
    refused(capsys, arguments(converted, videos, "--distil-steps", "3"), "was made with steps 20, and this call has 3")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(videos / "0.mp4", lonely)
    refused(capsys, arguments(tmp_path / "w", lonely), "0.mp4 has no caption")
    (lonely / "0.txt").write_text("noise")
    (lonely / "1.mp4").write_bytes(b"no video")
    (lonely / "1.txt").write_text("noise")
    refused(capsys, arguments(tmp_path / "v", lonely), "1.mp4 cannot be read")


def test_damaged(converted, videos, tmp_path, capsys):
    """A file that was cut short or is gone is named, with what to do."""
    work = tmp_path / "work"
    shutil.copytree(converted, work)
    shutil.rmtree(work / "distil")
    file = work / "record" / "0002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(capsys, arguments(work, videos, "--stages", "distil"), "0002.safetensors is damaged", "remove it")
    file.unlink()
    refused(capsys, arguments(work, videos, "--stages", "distil"), "0002.safetensors does not exist")
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    call = [str(model), *arguments(tmp_path / "x", videos)[1:]]
    refused(capsys, call, "transformer cannot be loaded")

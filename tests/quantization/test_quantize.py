"""A whole model quantized: what is written, what it computes, for every family, and on any number of ranks."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import oracle
import pytest
from assertions import assert_exact
from calibration import calibration, files
from make_model import CONFIGS, write_model
from safetensors.numpy import load_file, save_file
from threadpoolctl import ThreadpoolController

from cutpq.checkpoint.folder import open_checkpoint
from cutpq.cli.main import main
from cutpq.model.families import read_decoder
from cutpq.model.transformer import load_model
from cutpq.ops.dequant import dequantize
from cutpq.ops.engine import threads
from cutpq.quantization import solver, streams, writer
from cutpq.quantization.factor import inverse_factor
from cutpq.quantization.float_model import ALL, FloatModel, Linear, Norm
from cutpq.quantization.quantize import quantize
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.threads import run_threads

GROUP_SIZE = 16  # divides K = 64 and 96 of the small models


def logits(folder, tokens):
    model = load_model(folder, SelfCommunicator(), dtype="float32")
    return model(tokens, model.new_cache(*tokens.shape)).astype(np.float64)


def divergence(p, q):
    """Mean KL(p || q) of two arrays of logits."""
    p, q = (
        v - np.log(np.exp(v - v.max(1, keepdims=True)).sum(1, keepdims=True)) - v.max(1, keepdims=True) for v in (p, q)
    )
    return float((np.exp(p) * (p - q)).sum(1).mean())


def relative_error(want, got):
    """Root mean square of the logits' differences, by that of the logits; a constant added to a row counts nowhere."""
    want, got = (v - v.mean(1, keepdims=True) for v in (want, got))
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("family", CONFIGS)
def test_float_model_is_the_model(tmp_path, family):
    """Through the blocks that are quantized one at a time, the same logits as load_model's."""
    write_model(tmp_path, family)
    ckpt = open_checkpoint(tmp_path)
    decoder, tokens = read_decoder(ckpt), calibration(sequences=3)
    model = FloatModel(ckpt, decoder, tokens.shape[1], np)
    [x] = model.embed([tokens.ravel()])
    for layer in range(decoder.layers):
        block = model.block(layer)
        for halves in ([block.attention], block.mlp):
            before, x = x, x.copy()
            for half in halves:
                some = half.tokens(before)
                middle = half.act([block.linear(name)(some.of(half.norm(before))) for name in half.read])
                y = some.weighed(block.linear(half.write)(middle))
                x[some.rows] = block.add(x[some.rows], y)
    head = ckpt.tensor((decoder.embedding if decoder.tied else decoder.head) + ".weight").astype(np.float32)
    got = Norm(model, decoder.last_norm)(x) @ head.T * np.float32(decoder.logits_scale)
    want = logits(tmp_path, tokens)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family(tmp_path, family):
    model = write_model(tmp_path / "src", family)
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    tokens = calibration()
    done = quantize(tmp_path / "src", tmp_path / "dst", tokens, bits=8, group_size=GROUP_SIZE)
    ckpt = open_checkpoint(tmp_path / "dst")
    assert sorted(ckpt.weights()) == sorted(done.losses)
    assert len(done.losses) == 2 * {"phi3": 4, "gpt_bigcode": 4, "mixtral": 4 + 4 * 3}.get(family, 7)
    assert {ckpt.inspect(name).order_kind for name in ckpt.weights()} == {"trivial"}
    assert not any(ckpt.inspect(name).notes for name in ckpt.weights())
    assert max(done.losses.values()) < 1e-3
    assert all("does not make up for the layers before it" in note for note in done.notes)
    assert bool(done.notes) == (family == "mixtral")  # few tokens choose an expert
    assert (tmp_path / "dst" / "tokenizer.json").read_text() == "{}"
    for name in set(ckpt.tensors()) & set(model.tensors):  # embedding, norms, biases
        assert_exact(ckpt.tensor(name), model.tensors[name])
    want = logits(tmp_path / "src", tokens[:4])
    got = logits(tmp_path / "dst", tokens[:4])
    # Of the logits' own spread: the models' differ 500 times in variance (0.14 to 70), and divergences as much.
    assert 0 < relative_error(want, got) < (0.05 if family == "mixtral" else 0.013)  # a token may choose another expert
    plain = {"sweeps": 0, "scale": "minmax", "asymmetric_target": False}
    quantize(tmp_path / "src", tmp_path / "plain", tokens, bits=8, group_size=GROUP_SIZE, **plain)
    kl, plain_kl = divergence(want, got), divergence(want, logits(tmp_path / "plain", tokens[:4]))
    assert family == "mixtral" or 0 < kl < 0.9 * plain_kl
    assert not (tmp_path / "dst.unfinished").exists()


FORMATS = [
    ("gptq", True),
    ("gptq_v2", True),
    ("gptq_v2", False),
    ("compressed-tensors", True),
    ("compressed-tensors", False),
]


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A folder for each format, made once: the others are compared with gptq_v2's."""
    folder = tmp_path_factory.mktemp("solved")
    write_model(folder / "src", num_hidden_layers=1, head_dim=16)

    @cache
    def of(format, sym, bits):
        dst = folder / f"{format}-{sym}-{bits}"
        quantize(folder / "src", dst, calibration(), bits=bits, group_size=32, sym=sym, format=format)
        return dst

    return of


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("format, sym", FORMATS)
def test_formats_say_what_was_solved(solved, format, sym, bits):
    """The same numbers in every format, as the slow reader of the formats finds them."""
    ckpt, tensors = open_checkpoint(solved(format, sym, bits)), oracle.load(solved(format, sym, bits))
    name = "model.layers.0.mlp.down_proj"
    if format == "compressed-tensors":
        want = oracle.compressed(tensors, name, bits, 32)
    else:
        want = oracle.gptq(tensors, name, bits, 32, sym, format)
    oracle.assert_same_weight(ckpt.weight(name), want)
    assert_exact(want.codes, open_checkpoint(solved("gptq_v2", sym, bits)).weight(name).codes)
    assert ckpt.inspect(name).sym == sym
    if sym and format != "compressed-tensors":  # readers forgive the other label, so that only the bits show it
        first = int(tensors[f"{name}.qzeros"][0, 0]) & (1 << bits) - 1
        assert first == (1 << bits - 1) - (format == "gptq")
    assert want.codes.max() > 2 ** (bits - 1)


def test_configs_say_how_it_was_made(tmp_path):
    write_model(tmp_path / "src")
    done = quantize(tmp_path / "src", tmp_path / "dst", calibration(), group_size=32)
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    claims = config.pop("quantization_config")
    assert config == json.loads((tmp_path / "src" / "config.json").read_text())
    assert claims == json.loads((tmp_path / "dst" / "quantize_config.json").read_text())
    assert (claims["bits"], claims["group_size"], claims["desc_act"], claims["sym"]) == (4, 32, False, True)
    assert claims["checkpoint_format"] == "gptq"
    assert claims["meta"]["losses"] == done.losses
    assert claims["meta"]["options"]["order"] == "static"
    index = json.loads((tmp_path / "dst" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(open_checkpoint(tmp_path / "dst").tensors())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in oracle.load(tmp_path / "dst").values())


def test_shards_have_a_limit(tmp_path, monkeypatch):
    write_model(tmp_path / "src")
    quantize(tmp_path / "src", tmp_path / "one", calibration(), group_size=32)
    monkeypatch.setattr(writer, "SHARD_BYTES", 4000)
    quantize(tmp_path / "src", tmp_path / "many", calibration(), group_size=32)
    one, many = (oracle.load(tmp_path / name) for name in ("one", "many"))
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 10
    assert set(one) == set(many)
    for name, array in one.items():
        assert_exact(many[name], array)
    for path in (tmp_path / "many").glob("*.safetensors"):
        held = load_file(path)
        assert len(held) == 1 or sum(a.nbytes for a in held.values()) <= 4000


def test_modules_left_out_stay_float(tmp_path):
    model = write_model(tmp_path / "src")
    done = quantize(
        tmp_path / "src", tmp_path / "dst", calibration(), group_size=32, modules=r"mlp\.|layers\.1\..*[qk]_proj"
    )
    ckpt = open_checkpoint(tmp_path / "dst")
    assert len(done.losses) == len(ckpt.weights()) == 8
    kept = "model.layers.1.self_attn.v_proj.weight"
    assert_exact(ckpt.tensor(kept), model.tensors[kept])
    claims = json.loads((tmp_path / "dst" / "quantize_config.json").read_text())
    assert r"-:^model\.layers\.1\.self_attn\.v_proj$" in claims["dynamic"]
    assert logits(tmp_path / "dst", calibration()[:2]).shape == (48, 101)


def test_order_act_scatters_rows_but_not_those_of_down(tmp_path):
    write_model(tmp_path / "src")
    done = quantize(tmp_path / "src", tmp_path / "dst", calibration(), group_size=GROUP_SIZE, order="act")
    ckpt = open_checkpoint(tmp_path / "dst")
    orders = {name.rpartition(".")[2]: ckpt.inspect(name).order_kind for name in ckpt.weights()}
    assert orders.pop("down_proj") == "trivial"
    assert set(orders.values()) == {"act-order"}
    assert "vLLM since 0.30 ignores g_idx" in done.notes[0]
    tokens = calibration()[:2]
    quantize(tmp_path / "src", tmp_path / "static", calibration(), group_size=GROUP_SIZE)
    want = logits(tmp_path / "src", tokens)
    assert divergence(want, logits(tmp_path / "dst", tokens)) < 2 * divergence(
        want, logits(tmp_path / "static", tokens)
    )


def test_the_target_makes_up_for_the_layers_before(tmp_path):
    """Fewer bits than layers can stand alone: with the asymmetric target the model is nearer to the float one."""
    write_model(tmp_path / "src", num_hidden_layers=4, head_dim=16)
    tokens = calibration(sequences=64)
    kl = {}
    for target in (True, False):
        dst = tmp_path / f"target-{target}"
        quantize(tmp_path / "src", dst, tokens, bits=3, group_size=32, asymmetric_target=target)
        kl[target] = divergence(logits(tmp_path / "src", tokens[:8]), logits(dst, tokens[:8]))
    assert kl[True] < 0.9 * kl[False]


@pytest.mark.parametrize("family", ["llama", "granite", "mixtral"])
def test_the_last_module_of_a_half_makes_up_for_what_the_sum_lacks(tmp_path, monkeypatch, family):
    """The drift of the first down_proj, from both models' activations; an expert makes up for its own input alone."""
    write_model(tmp_path / "src", family)
    tokens, drifts = calibration(sequences=64), []
    solve = streams.solve_together

    def record(weights, H, drift, *others):
        drifts.append(drift.copy())
        return solve(weights, H, drift, *others)

    monkeypatch.setattr(streams, "solve_together", record)
    quantize(tmp_path / "src", tmp_path / "dst", tokens, bits=4, group_size=32)
    ckpt, solved = open_checkpoint(tmp_path / "src"), open_checkpoint(tmp_path / "dst")
    decoder = read_decoder(ckpt)
    model = FloatModel(ckpt, decoder, tokens.shape[1], np)
    block, [embedded] = model.block(0), model.embed([tokens.ravel()])

    def linear(name, weight):
        plain = block.linear(name)
        return plain if weight is None else Linear(dequantize(weight(name)).astype(np.float32), plain.bias)

    def inputs(half, x, weight, some):
        return half.act([linear(name, weight)(some.of(half.norm(x))) for name in half.read])

    def through_attention(weight):
        half = block.attention
        return block.add(embedded, linear(half.write, weight)(inputs(half, embedded, weight, ALL)))

    x, x0 = through_attention(solved.weight), through_attention(None)
    half = block.mlp[0]
    some = half.tokens(x)
    X, X0 = inputs(half, x, solved.weight, some), inputs(half, x0, None, some)
    lacking = 0 if decoder.experts else (x0 - x) / decoder.residual_scale
    assert np.abs(x0 - x).max() > 0.01 * np.abs(x).max()
    W = block.linear(half.write).weight.astype(np.float64)
    want = 2 / tokens.size * X.T @ (X0 @ W + lacking - X @ W)
    assert np.abs(drifts[3] - want).max() < 1e-4 * np.abs(want).max()


def test_activations_beyond_the_memory_are_in_files(tmp_path):
    write_model(tmp_path / "src")
    for name, memory_gb in (("memory", 1.0), ("files", 0.0)):
        quantize(tmp_path / "src", tmp_path / name, calibration(), group_size=32, memory_gb=memory_gb)
    assert files(tmp_path / "memory") == files(tmp_path / "files")


def test_a_hessian_in_pieces_is_that_in_one(tmp_path, monkeypatch):
    """Sums of some hundred products in another order: nearly all codes, and the losses."""
    write_model(tmp_path / "src", head_dim=16)
    one = quantize(tmp_path / "src", tmp_path / "one", calibration(), group_size=32)
    monkeypatch.setattr(streams, "_SUM_BYTES", 4 * 96 * 40)
    some = quantize(tmp_path / "src", tmp_path / "some", calibration(), group_size=32)
    name = "model.layers.0.mlp.down_proj"
    codes = [open_checkpoint(tmp_path / dst).weight(name).codes for dst in ("one", "some")]
    assert (codes[0] == codes[1]).mean() > 0.998
    assert some.losses[name] == pytest.approx(one.losses[name], rel=1e-3)


@pytest.mark.parametrize(("ranks", "family"), [(2, "llama"), (8, "llama"), (4, "mixtral")])
def test_any_number_of_ranks_writes_the_same_bytes(tmp_path, monkeypatch, ranks, family):
    monkeypatch.setattr(streams, "_SUM_BYTES", 4 * 96 * 40)  # of Hessians with 96 rows: three pieces
    write_model(tmp_path / "src", family, head_dim=16)
    tokens = calibration(sequences=11)  # blocks of one sequence and of two
    quantize(tmp_path / "src", tmp_path / "one", tokens, bits=3, group_size=32)
    run_threads(ranks, lambda comm: quantize(tmp_path / "src", tmp_path / "many", tokens, comm, bits=3, group_size=32))
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_any_number_of_cores_writes_the_same_bytes(tmp_path, monkeypatch):
    """Matrices large enough for a BLAS to share them among its threads, which makes other bits."""
    write_model(tmp_path / "src", hidden_size=256, intermediate_size=768, num_hidden_layers=1)
    for cores in (1, 2):
        monkeypatch.setattr(threads._state, "limit", cores)
        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            library.set_num_threads(threads.cores())
        threads.use_one_for_blas.cache_clear()
        quantize(tmp_path / "src", tmp_path / f"{cores}", calibration(sequences=32), group_size=32)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_command(tmp_path, capsys):
    write_model(tmp_path / "src")
    np.save(tmp_path / "tokens.npy", calibration().ravel())
    arguments = ["--tokens", str(tmp_path / "tokens.npy"), "--window", "24", "--group-size", "32", "--json"]
    capsys.readouterr()
    assert main(["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["scale"] == "search"
    assert len(told["losses"]) == 14
    quantize(tmp_path / "src", tmp_path / "same", calibration(), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "same")
    assert main(["quantize", str(tmp_path / "src"), str(tmp_path / "fast"), *arguments[:-1], "--fast", "--asym"]) == 0
    assert "proved, bit for bit" in capsys.readouterr().out
    claims = json.loads((tmp_path / "fast" / "quantize_config.json").read_text())
    assert claims["checkpoint_format"] == "gptq_v2"
    assert (claims["meta"]["options"]["sweeps"], claims["meta"]["options"]["asymmetric_target"]) == (0, False)


TINY_LLAMA = Path(__file__).resolve().parents[1] / "data" / "tiny-llama"
TEXT = "SELECT name FROM city WHERE population > 1000; CREATE TABLE zoë (id integer);\n" * 12


def command_with_text(tmp_path, tokenizer="{}", text=b""):
    """Write a model whose vocabulary is the carried tokenizer's, its tokenizer.json and a text: a command on them."""
    write_model(tmp_path / "src", vocab_size=1024)
    if tokenizer is not None:
        (tmp_path / "src" / "tokenizer.json").write_text(tokenizer)
    if text is not None:
        (tmp_path / "calib.txt").write_bytes(text or TEXT.encode())
    command = ["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), "--text", str(tmp_path / "calib.txt")]
    return [*command, "--window", "24", "--group-size", "32"]


def test_a_text_is_its_tokens_by_the_models_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = (TINY_LLAMA / "tokenizer.json").read_text(encoding="utf-8")
    assert main([*command_with_text(tmp_path, tokenizer), "--sequences", "16"]) == 0
    tokens = tokenizers.Tokenizer.from_str(tokenizer).encode(TEXT).ids
    quantize(tmp_path / "src", tmp_path / "same", np.reshape(tokens[: 16 * 24], (16, 24)), group_size=32)
    assert files(tmp_path / "dst") == files(tmp_path / "same")


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (None, b"one", "--text: .*src has no tokenizer.json; or give --tokens"),
        ("{}", b"one", "tokenizer.json: expected a tokenizer, found what cannot be read as one"),
        ("carried", None, "calib.txt: No such file or directory"),
        ("carried", b"caf\xe9", "--text .*calib.txt: not UTF-8 text, at byte 3"),
        ("carried", b"one", r"calib.txt: \d+ tokens cannot be cut into windows of --window 24"),
    ],
)
def test_a_text_without_tokens_is_one_line(tmp_path, capsys, tokenizer, text, message):
    pytest.importorskip("tokenizers")
    if tokenizer == "carried":
        tokenizer = (TINY_LLAMA / "tokenizer.json").read_text(encoding="utf-8")
    assert main(command_with_text(tmp_path, tokenizer, text)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(f"cutpq: error: .*{message}", line)


def test_a_text_needs_the_package_tokenizers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(command_with_text(tmp_path)) == 1
    assert "needs the package tokenizers: pip install 'cutpq[text]'; or give --tokens" in capsys.readouterr().err


def test_modules_whose_hessian_has_no_inverse_are_rounded_and_named(tmp_path, capsys, monkeypatch):
    """Here every one with 96 inputs: o_proj and down_proj."""
    model = write_model(tmp_path / "src")
    np.save(tmp_path / "tokens.npy", calibration())
    monkeypatch.setattr(solver, "inverse_factor", lambda A, damp: None if len(A) == 96 else inverse_factor(A, damp))
    command = ["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), "--tokens", str(tmp_path / "tokens.npy")]
    assert main([*command, "--group-size", "32"]) == 0
    said = re.findall(r"note: (\S+) was rounded to the nearest: no damping sufficed", capsys.readouterr().err)
    assert said == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")]
    for name in said:
        weight = open_checkpoint(tmp_path / "dst").weight(name)
        error = dequantize(weight).astype(np.float64) - model.tensors[name + ".weight"].T
        step = weight.scales.astype(np.float64)[weight.g_idx]
        assert (np.abs(error) < 0.51 * step).all()  # half a step, and what float16 rounds


def expert(layer, number, child):
    return f"model.layers.{layer}.block_sparse_moe.experts.{number}.{child}"


def test_an_expert_is_solved_for_the_tokens_that_choose_it(tmp_path):
    """Against the solver, with the sum of squares over just these tokens."""
    write_model(tmp_path / "src", "mixtral", num_hidden_layers=1)
    tokens = calibration()
    settings = {"bits": 3, "group_size": 32}
    quantize(tmp_path / "src", tmp_path / "dst", tokens, asymmetric_target=False, modules=r"\.w[13]$", **settings)
    ckpt = open_checkpoint(tmp_path / "src")
    model = FloatModel(ckpt, read_decoder(ckpt), tokens.shape[1], np)
    block, [x] = model.block(0), model.embed([tokens.ravel()])
    qkv = [block.linear(name)(block.attention.norm(x)) for name in block.attention.read]
    x = x + block.linear(block.attention.write)(block.attention.act(qkv))
    h = block.mlp[0].norm(x).astype(np.float64)
    logits = h @ ckpt.tensor("model.layers.0.block_sparse_moe.gate.weight").T.astype(np.float64)
    for number in range(4):
        chose = (logits > logits[:, [number]]).sum(1) < 2
        assert 0.1 < chose.mean() < 0.9
        for child in ("w1", "w3"):
            W = ckpt.tensor(expert(0, number, child) + ".weight").T.astype(np.float32)
            want = solver.quantize_weight(W, (h[chose].T @ h[chose]).astype(np.float32), **settings).weight
            got = open_checkpoint(tmp_path / "dst").weight(expert(0, number, child))
            assert (got.codes == want.codes).mean() > 0.998
            other = solver.quantize_weight(W, (h.T @ h).astype(np.float32), **settings).weight
            assert (got.codes == other.codes).mean() < 0.99


def test_experts_that_few_tokens_choose_are_rounded_and_named(tmp_path, capsys):
    """Of logits r, -r, s, -s and 0 the last is never among the two largest."""
    model = write_model(tmp_path / "src", "mixtral", num_local_experts=5, num_hidden_layers=1)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    edit(tmp_path / "src", lambda t: t[router].__setitem__(slice(None), t[router][[0, 0, 1, 1, 4]] * SIGNS))
    np.save(tmp_path / "tokens.npy", calibration())
    command = ["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), "--tokens", str(tmp_path / "tokens.npy")]
    assert main([*command, "--group-size", "32", "--scale", "minmax"]) == 0
    said = re.findall(
        r"note: (\S+) was rounded to the nearest: only 0 calibration tokens chose its expert", capsys.readouterr().err
    )
    assert said == [expert(0, 4, child) for child in ("w1", "w3", "w2")]
    for name, nearest in [*((name, True) for name in said), (expert(0, 0, "w1"), False)]:
        weight = open_checkpoint(tmp_path / "dst").weight(name)
        error = dequantize(weight).astype(np.float64) - model.tensors[name + ".weight"].T
        step = weight.scales.astype(np.float64)[weight.g_idx]
        assert (np.abs(error) < 0.51 * step).all() == nearest


SIGNS = np.array([[1], [-1], [1], [-1], [0]], np.float16)


# ---- what cannot be quantized


def fails(tmp_path, capsys, *arguments, tokens=None):
    np.save(tmp_path / "tokens.npy", calibration() if tokens is None else tokens)
    command = ["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), "--tokens", str(tmp_path / "tokens.npy")]
    assert main([*command, "--group-size", "32", *arguments]) == 1
    assert not (tmp_path / "dst").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--group-size", "40"], "q_proj: K=64 is not a multiple of group_size=40; take a divisor of K, or -1"),
        (["--group-size", "12"], "group_size=12 must be -1 or a multiple of 8"),
        (["--damp", "2"], "damp=2.0 must be between 0 and 1"),
        (["--asym", "--format", "gptq"], "take gptq_v2 or compressed-tensors, or --sym"),
        (["--modules", "nothing"], "--modules 'nothing' finds no module of"),
        (["--modules", "("], "--modules: expected a regular expression, found '('"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, capsys, arguments, message):
    write_model(tmp_path / "src")
    assert message in fails(tmp_path, capsys, *arguments)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (np.full((4, 8), 101), "token 101 of sequence 0 at 0 is out of range: the vocabulary is 0 .. 100"),
        (np.array([[1, 2], [3, -1]]), "token -1 of sequence 1 at 1 is out of range"),
        (np.zeros((4, 8)), "must be integers of shape (sequences, length), length at least 2, got float64"),
        (np.zeros((0, 8), int), r"got int64 of shape (0, 8)"),
        (np.zeros((2, 65), int), "sequences of 65 tokens are longer than the 64 positions"),
        (np.zeros(100, int), "100 tokens cannot be cut into windows of --window 512"),
    ],
)
def test_tokens_that_do_not_fit(tmp_path, capsys, tokens, message):
    write_model(tmp_path / "src")
    assert message in fails(tmp_path, capsys, tokens=tokens)


def test_few_tokens_are_said_by_name(tmp_path):
    write_model(tmp_path / "src")
    done = quantize(tmp_path / "src", tmp_path / "dst", calibration(sequences=3), group_size=32)
    assert "72 calibration tokens are fewer than the K=96 inputs of model.layers.0.self_attn.o_proj" in done.notes[0]
    assert "and 3 more modules" in done.notes[0]


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_weights_that_are_not_finite_are_named(tmp_path, capsys):
    write_model(tmp_path / "src")
    edit(tmp_path / "src", lambda t: t["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 5), np.nan))
    assert "model.layers.1.mlp.up_proj.weight: expected finite numbers, found nan at (3, 5)" in fails(tmp_path, capsys)


def test_activations_that_are_not_finite_are_named(tmp_path, capsys):
    write_model(tmp_path / "src")

    def overflow(tensors):
        for layer in range(2):
            for name in ("gate", "up", "down"):
                tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"][:] *= np.float16(3e4)
        tensors["model.layers.0.post_attention_layernorm.weight"][:] = 6e4

    edit(tmp_path / "src", overflow)
    with np.errstate(all="ignore"):
        assert "hold NaN or infinity for these calibration tokens" in fails(tmp_path, capsys)


def test_a_family_that_cannot_be_run_is_refused(tmp_path, capsys):
    config = write_model(tmp_path / "src").config | {"model_type": "gpt_neox"}
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    assert re.search(r"model_type: expected one of llama, .*, found 'gpt_neox'", fails(tmp_path, capsys))


def test_a_quantized_source_is_refused(tmp_path, capsys):
    write_model(tmp_path / "src", quantized=True)
    assert "expected float weights, found 14 quantized modules such as" in fails(tmp_path, capsys)


def test_a_module_of_another_shape_is_refused(tmp_path, capsys):
    write_model(tmp_path / "src")
    edit(
        tmp_path / "src", lambda t: t.update({"model.layers.1.self_attn.q_proj.weight": np.zeros((8, 64), np.float16)})
    )
    message = fails(tmp_path, capsys)
    assert "model.layers.1.self_attn.q_proj.weight: expected shape (96, 64) by config.json, found (8, 64)" in message


def test_a_destination_that_is_there_is_refused(tmp_path, capsys):
    write_model(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").touch()
    np.save(tmp_path / "tokens.npy", calibration())
    command = ["quantize", str(tmp_path / "src"), str(tmp_path / "dst"), "--tokens", str(tmp_path / "tokens.npy")]
    assert main([*command, "--group-size", "32"]) == 1
    assert "the destination must not exist, or be an empty folder" in capsys.readouterr().err


def test_a_full_disk_is_seen_before_the_work(tmp_path, capsys, monkeypatch):
    write_model(tmp_path / "src")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "are needed for the result and for activations between layers, 0.0 GB are free" in fails(tmp_path, capsys)


def test_what_does_not_read_back_is_not_kept(tmp_path, capsys, monkeypatch):
    write_model(tmp_path / "src")
    packed = writer.gptq.packed_tensors

    def one_code_wrong(name, w, zeros):
        tensors = packed(name, w, zeros)
        if name == "model.layers.1.mlp.up_proj":
            tensors[f"{name}.qweight"][0, 0] ^= 1
        return tensors

    monkeypatch.setattr(writer.gptq, "packed_tensors", one_code_wrong)
    assert "proof failed: model.layers.1.mlp.up_proj in" in fails(tmp_path, capsys)

"""A model as one graph: the masks of the model itself, for any number of tiles and queries, also without torch."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import self1e
from self1e.cli.main import main
from self1e.errors import CheckpointError, MissingDependencyError, PromptError, SettingError
from self1e.inference import masks, onnx_export
from self1e.inference.mask_graph import MaskGraph, graph_obstacle
from self1e.inference.onnx_export import export_onnx, export_program, save, to_onnx, trace
from self1e.inference.onnx_runtime import OnnxSegmenter, enlarge

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
NAMES = ("pixels", "input_ids", "layout")
CASES = {
    "1 tile, 1 query": ((90, 60), 1, ["blue"]),
    "1 x 3 tiles, 4 queries": ((150, 50), 3, ["what is that?", "red", "a longer phrase", "b"]),
    "4 x 1 tiles, 1 query": ((50, 200), 4, ["something else, in more words than that"]),
    "2 x 3 tiles, 2 queries": ((90, 60), 6, ["a"] * 2),
}
"""Size of the picture, most tiles, queries: none is what graphs are traced with."""


def draw(size_wh: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size_wh)


def inputs_of(model: Any, size_wh: tuple[int, int], max_tiles: int, queries: list[str]) -> tuple[torch.Tensor, ...]:
    levels, (rows, columns) = model.processor.image_processor.cut(draw(size_wh), max_tiles)
    answer = "[SEG]" * model.model.config.num_seg_tokens
    ids = model.processor.segmentation_inputs(queries, num_tiles=rows * columns, answer=answer)["input_ids"]
    return torch.from_numpy(levels), ids, torch.arange(rows * columns).view(rows, columns)


def expected_of(model: Any, size_wh: tuple[int, int], max_tiles: int, queries: list[str]) -> torch.Tensor:
    return model.mask_logits(draw(size_wh), queries, max_tiles=max_tiles, exact="plain")


def graph_of(model: Any) -> MaskGraph:
    images = model.processor.image_processor
    return MaskGraph(model.model, image_mean=images.image_mean, image_std=images.image_std)


def run_onnx(session: Any, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)})[0]


@pytest.fixture(scope="module")
def program(tiny_model) -> torch.export.ExportedProgram:
    """The tiny model, traced once."""
    return export_program(tiny_model)


@pytest.fixture(scope="module")
def translated(program) -> Any:
    """The same, translated once: seconds each."""
    return to_onnx(program)


@pytest.fixture(scope="module")
def exported(tiny_model, program, translated, tmp_path_factory) -> Path:
    """The tiny model as ONNX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "export_program", {tiny_model: program}.__getitem__)
        patch.setattr(onnx_export, "to_onnx", lambda given: {program: translated}[given])
        return export_onnx(tiny_model, tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def segmenter(exported) -> OnnxSegmenter:
    return OnnxSegmenter(exported)


# --------------------------------------------------------------------------- the function


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"attention": "image"},
        {"attention": "image_text", "seg_readout": "at"},
        {"fine": "none", "attention": "causal"},
        {"fine": "scan", "unshuffle": "three", "attention": "bidirectional"},
        {"num_seg_tokens": 4},
    ],
    ids=str,
)
def test_the_graphs_module_is_the_model(make_tiny_model, tmp_path, switches):
    model = self1e.load(make_tiny_model(tmp_path / "tiny", **switches), device="cpu", dtype="float32")
    graph = graph_of(model)
    for case in CASES.values():
        with torch.inference_mode():
            found = graph(*inputs_of(model, *case))
        torch.testing.assert_close(found, expected_of(model, *case), atol=1e-4, rtol=1e-4)


def misfits(model: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """Inputs of which the first row is wrong, and what follows is not."""
    pixels, ids, layout = inputs_of(model, *CASES["1 x 3 tiles, 4 queries"])
    config = model.model.config
    cut, spoken = ids.clone(), ids.clone()
    cut[0, (ids[0] == config.image_token_id).nonzero()[0]] = 1
    spoken[0][spoken[0] == config.seg_token_id] = 1
    longer = ids.clone()
    longer[0, (ids[0] == config.image_token_id).nonzero()[-1] + 1] = config.image_token_id
    return {
        "an image token less": (pixels, cut, layout),
        "one more": (pixels, longer, layout),
        "no [SEG]": (pixels, spoken, layout),
    }


def test_inputs_that_do_not_fit_give_no_mask(tiny_model, exported):
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    graph = graph_of(tiny_model)
    right = expected_of(tiny_model, *CASES["1 x 3 tiles, 4 queries"])
    for what, inputs in misfits(tiny_model).items():
        with torch.inference_mode():
            both = graph(*inputs), torch.from_numpy(run_onnx(session, inputs))
        for found in both:
            assert found[0].isnan().all(), what
            torch.testing.assert_close(found[1:], right[1:], atol=1e-3, rtol=1e-3)
    pixels, ids, layout = inputs_of(tiny_model, *CASES["1 x 3 tiles, 4 queries"])
    for few in ((pixels, ids, layout[:, :2]), (torch.cat([pixels, pixels]), ids, layout)):
        assert np.isnan(run_onnx(session, few)).all()


@pytest.mark.parametrize("kind", ["adapters", "bfloat16", "rope", "int8"])
def test_models_without_a_graph_are_refused(make_tiny_model, tmp_path, kind):
    folder = make_tiny_model(tmp_path / "tiny")
    messages = {"adapters": "merge", "bfloat16": "bfloat16.*float32", "rope": "'dynamic'", "int8": "quantised"}
    dtype = {"bfloat16": "bfloat16", "int8": "int8"}.get(kind, "float32")
    model = self1e.load(folder, device="cpu", dtype=dtype)
    if kind == "adapters":
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model.model)
    if kind == "rope":
        model.model.config.text_config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert graph_obstacle(model.model)
    with pytest.raises(SettingError, match=messages[kind]):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


# --------------------------------------------------------------------------- torch.export


def test_an_exported_program_takes_any_number_of_tiles_and_queries(tiny_model, program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert not any("lm_head" in name for name in loaded.state_dict)
    module = loaded.module()
    for case in CASES.values():
        found = module(*inputs_of(tiny_model, *case))
        torch.testing.assert_close(found, expected_of(tiny_model, *case), atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------- onnxruntime


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_onnxruntime_gives_the_models_logits(tiny_model, exported, case):
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    expected = expected_of(tiny_model, *case).numpy()
    np.testing.assert_allclose(run_onnx(session, inputs_of(tiny_model, *case)), expected, atol=1e-3, rtol=0)


OTHER = {"attention": "image", "seg_readout": "at", "fine": "scan", "unshuffle": "three", "num_seg_tokens": 4}


@pytest.mark.parametrize(("family", "encoder", "switches"), [("qwen3", "qwen3", {}), ("llama", "rms_encoder", OTHER)])
def test_every_family_is_exported(load_script, tmp_path, family, encoder, switches):
    """Qwen2 is above; Llama is also what InternLM2 is loaded as; this encoder is that of the bases with 6B of it."""
    recorder = load_script("record_goldens")
    model = recorder.tiny_model(family, encoder=recorder.CASES[encoder][1], **switches)
    save(to_onnx(trace(MaskGraph(model))), tmp_path / "model.onnx")
    assert model.config._attn_implementation == "eager", "as it was"
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    images = self1e.Self1EImageProcessor(size={"height": 16, "width": 16})
    rng = np.random.default_rng(1)
    for (rows, columns), queries in (((1, 1), 1), ((1, 3), 4), ((2, 2), 2)):
        tiles = rows * columns
        batch = recorder.tiny_batch(model.config, tile_grids=((rows, columns),), picture_of_row=(0,) * queries)
        levels = rng.integers(0, 256, (tiles, 3, 16, 16), dtype=np.uint8)
        with torch.inference_mode():
            expected = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pixel_values=torch.from_numpy(images.normalise(levels)),
                tile_grids=[(rows, columns)],
                picture_of_row=[0] * queries,
            ).mask_logits
        inputs = torch.from_numpy(levels), batch["input_ids"], torch.arange(tiles).view(rows, columns)
        np.testing.assert_allclose(run_onnx(session, inputs), torch.cat(expected).numpy(), atol=1e-4, rtol=1e-4)


def test_the_file_says_what_it_is(tiny_model, exported):
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sizes["pixels"] == ["tiles", 3, 56, 56]
    assert sizes["input_ids"] == ["queries", "length"]
    assert sizes["layout"] == ["rows", "columns"]
    assert sizes["mask_logits"][0] == "queries"
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert kinds == {"pixels": onnx.TensorProto.UINT8, "input_ids": 7, "layout": onnx.TensorProto.INT64}
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == onnx_export.OPSET
    facts = json.loads((exported / "model.json").read_text("utf-8"))
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["self1e"]) == facts
    assert facts["model"] == Path(tiny_model.name).name
    assert facts["image_tokens_per_tile"] == 4


def test_the_file_holds_the_weights_once_and_nothing_of_this_machine(tiny_model, exported):
    content = (exported / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert str(tiny_model.name).encode() not in content
    parts = (tiny_model.model.model, tiny_model.model.mask_head)
    weights = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    assert weights < len(content) < weights + 400_000


def test_large_weights_lie_beside_the_graph(tiny_model, translated, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_INLINE_BYTES", 10_000)
    folder = Path(shutil.copytree(exported, tmp_path / "tiny"))
    (folder / "model.onnx").unlink()
    save(translated, folder / "model.onnx")
    assert (folder / "model.onnx.data").stat().st_size > 100_000
    picture = draw((90, 60))
    moved = folder.rename(tmp_path / "moved")
    expected = tiny_model.mask_logits(picture, "blue", exact="plain").numpy()
    np.testing.assert_allclose(OnnxSegmenter(moved).mask_logits(picture, "blue"), expected, atol=1e-3)
    (moved / "model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match="onnxruntime cannot read it"):
        OnnxSegmenter(moved)


def test_the_facts_are_enough_to_write_a_prompt(tiny_model, exported):
    """What a program in another language does."""
    from tokenizers import Tokenizer

    facts = json.loads((exported / "model.json").read_text("utf-8"))
    words = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for query, kind in (("red cup", "phrase"), ("Which one can hold water?", "sentence"), ("日本語 {x}", "phrase")):
        question = facts["prompt"]["questions"][kind].replace("{text}", query)
        after = facts["prompt"]["after"].replace("{question}", question)
        image = [facts["image_token_id"]] * (facts["image_tokens_per_tile"] * 2)
        found = facts["prompt"]["before"] + image + words.encode(after, add_special_tokens=False).ids
        assert [found] == tiny_model.processor.segmentation_ids(query, num_tiles=2, kind=kind)


# --------------------------------------------------------------------------- without torch

WITHOUT_TORCH = """
import sys, json
sys.modules["torch"] = None  # importing it fails
from self1e.inference.onnx_runtime import OnnxSegmenter
result = OnnxSegmenter(sys.argv[1]).segment(sys.argv[2], ["blue", "Which [SEG] can hold water?"], max_tiles=4)
print(json.dumps({"scores": result.scores.tolist(), "rles": result.to_coco_rle(), "source": result.source}))
"""


def test_masks_are_made_without_torch(tiny_model, exported, tmp_path):
    picture = tmp_path / "picture.png"
    draw((200, 50)).save(picture)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(picture)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    expected = tiny_model.segment(picture, ["blue", "Which [SEG] can hold water?"], max_tiles=4, exact="plain")
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-3)
    result = self1e.Segmentation(expected.queries, tuple(found["rles"]), expected.scores, expected.size_wh)
    assert np.mean(result.masks == expected.masks) > 0.999
    assert found["source"] == expected.source


def test_the_runner_segments_as_the_model_does(tiny_model, segmenter):
    queries = ["The Red cup", "what is that?", "日本語", *(f"number {n}" for n in range(9))]
    settings: dict[str, Any] = {"max_tiles": 3, "threshold": 0.5, "return_logits": True, "template": "<image>{text}!"}
    picture = draw((150, 50))
    expected = tiny_model.segment(picture, queries, kind=["phrase", "sentence"] * 6, exact="plain", **settings)
    found = segmenter.segment(picture, queries, kind=["phrase", "sentence"] * 6, **settings)
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert np.mean(found.masks == expected.masks) > 0.999
    assert (found.queries, found.size_wh) == (expected.queries, expected.size_wh)
    one_by_one = segmenter.mask_logits(picture, queries[:2], max_tiles=3, batch_size=1)
    np.testing.assert_allclose(one_by_one, segmenter.mask_logits(picture, queries[:2], max_tiles=3), atol=1e-4)


def test_the_calibrated_threshold_comes_along(make_tiny_model, translated, tmp_path, monkeypatch):
    model = self1e.load(make_tiny_model(tmp_path / "tiny", no_target_threshold=0.999), device="cpu")
    monkeypatch.setattr(onnx_export, "export_program", lambda segmenter: None)
    monkeypatch.setattr(onnx_export, "to_onnx", lambda program: translated)  # weights of the same seed
    segmenter = OnnxSegmenter(export_onnx(model, tmp_path / "onnx"))
    picture = draw((90, 60))
    assert segmenter.segment(picture, "blue").is_empty.all()
    assert not segmenter.segment(picture, "blue", reject=False).is_empty.any()


@pytest.mark.parametrize("size_wh", [(37, 61), (8, 8), (1, 50), (1500, 900)])
@pytest.mark.parametrize("threshold", [0.0, 0.8, -2.0, 99.0])
def test_masks_are_enlarged_as_with_torch(size_wh, threshold):
    logits = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    logits[:, 5:8] = -1  # strips without foreground
    expected, score = masks.enlarge(logits, size_wh, threshold)
    found, also = enlarge(logits.numpy(), size_wh, threshold)
    one, other = (self1e.Segmentation(("a",), (rle,), [0.5], size_wh).mask() for rle in (found, expected))
    assert (one != other).sum() <= 1e-5 * one.size + 1
    assert also == pytest.approx(score, abs=1e-4)


# --------------------------------------------------------------------------- what cannot work


def test_what_cannot_work_is_said(segmenter, exported, tmp_path):
    picture = draw((90, 60))
    for queries, message in (([], "no query"), (" ", "empty query"), ([3], "expected a string")):
        with pytest.raises(PromptError, match=message):
            segmenter.segment(picture, queries)
    for settings, message in (({"max_tiles": 13}, "max_tiles=13"), ({"batch_size": 0}, "batch_size=0")):
        with pytest.raises(SettingError, match=message):
            segmenter.segment(picture, "blue", **settings)
    with pytest.raises(SettingError, match=r"MagicExecutionProvider.*CPUExecutionProvider"):
        OnnxSegmenter(exported, providers=["MagicExecutionProvider"])
    with pytest.raises(CheckpointError, match="OnnxSegmenter"):
        self1e.load(exported)


def test_folders_that_are_no_export_are_said(exported, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    with pytest.raises(CheckpointError, match="--to onnx"):
        OnnxSegmenter(tmp_path)
    cut = copy("cut")
    (cut / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot read it"):
        OnnxSegmenter(cut)
    (copy("words") / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        OnnxSegmenter(tmp_path / "words")
    settings = json.loads((copy("mixed") / "processor_config.json").read_text("utf-8"))
    settings["image_seq_length"] = 9
    (tmp_path / "mixed" / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match="image_tokens_per_tile 4 / 9"):
        OnnxSegmenter(tmp_path / "mixed")
    foreign = onnx.load(exported / "model.onnx")
    foreign.ClearField("metadata_props")
    onnx.save(foreign, copy("foreign") / "model.onnx")
    with pytest.raises(CheckpointError, match="says nothing of self1e"):
        OnnxSegmenter(tmp_path / "foreign")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(tiny_model, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"self1e\[onnx\]"):
        export_onnx(tiny_model, tmp_path / "x")


def test_a_missing_onnxruntime_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"self1e\[onnx\]"):
        OnnxSegmenter(exported)


def test_the_target_is_checked_first(tiny_model, exported):
    with pytest.raises(SettingError, match="not an empty folder"):
        export_onnx(tiny_model, exported)


# --------------------------------------------------------------------------- the command


def convert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *map(str, arguments), "--to", "onnx"])
    return int(stopped.value.code or 0)


def test_convert_makes_the_folder(tiny_model, tiny_model_folder, translated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "export_program", lambda segmenter: segmenter.dtype)
    monkeypatch.setattr(onnx_export, "to_onnx", lambda program: {torch.float32: translated}[program])
    assert convert(tiny_model_folder, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"ONNX graph, float32, 0.00 GB -> {tmp_path / 'out'}\n"
    expected = tiny_model.mask_logits(draw((90, 60)), "blue", exact="plain").numpy()
    found = OnnxSegmenter(tmp_path / "out").mask_logits(draw((90, 60)), "blue")
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_nano_as_a_graph_has_its_logits(tmp_path):
    """The first block of docs/onnx.md does the same with two queries."""
    assert convert("nano", tmp_path / "nano-onnx") == 0
    nano = self1e.load("nano", device="cpu", dtype="float32")
    segmenter = OnnxSegmenter(tmp_path / "nano-onnx")
    picture = ROOT / "src/self1e/assets/astronaut.jpg"
    for tiles, queries in ((1, ["the person"]), (3, ["the person", "the trousers", "a", "what is orange?"])):
        expected = nano.mask_logits(picture, queries, max_tiles=tiles, exact="plain").numpy()
        found = segmenter.mask_logits(picture, queries, max_tiles=tiles)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_convert_refuses_what_onnx_cannot_take(tiny_model_folder, exported, tmp_path, capsys):
    settings = ("--merge", "--lora-alpha", 3, "--max-shard-size", "1GB")
    assert convert(tiny_model_folder, tmp_path / "x", *settings) == 2
    assert "--merge, --lora-alpha, --max-shard-size" in capsys.readouterr().err
    assert convert(tiny_model_folder, exported) == 2
    assert "not an empty folder" in capsys.readouterr().err

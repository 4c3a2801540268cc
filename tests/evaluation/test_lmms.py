"""lmms-eval calls a self1e model: over its installed interface if there is one, else over a faithful double."""

from __future__ import annotations

import abc
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from self1e.errors import MissingDependencyError, SettingError

pytestmark = pytest.mark.usefixtures("one_thread")

IS_INSTALLED = importlib.util.find_spec("lmms_eval") is not None
ADAPTER = "self1e.evaluation.lmms"


class _Lmms(abc.ABC):
    """What lmms-eval's abstract model demands and offers: three abstract methods, rank, cache, ``task_dict``."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict = {}
        self.cached: list = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *entry: self.cached.append(entry))

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass(frozen=True)
class _Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


def double() -> dict[str, ModuleType]:
    """The modules of lmms-eval that the adapter imports."""
    modules = {
        name: ModuleType(name)
        for name in (
            "lmms_eval",
            "lmms_eval.api",
            "lmms_eval.api.model",
            "lmms_eval.models",
            "lmms_eval.models.registry_v2",
        )
    }
    modules["lmms_eval.api.model"].lmms = _Lmms  # type: ignore[attr-defined]
    modules["lmms_eval.models.registry_v2"].ModelManifest = _Manifest  # type: ignore[attr-defined]
    return modules


@pytest.fixture
def adapter(monkeypatch):
    """The adapter, imported anew over the double."""
    for name, module in double().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


def request_of(context, doc_id, task="task", *, visuals=lambda doc: [doc["image"]], **settings):
    return SimpleNamespace(args=(context, settings, visuals, doc_id, task, "val"))


def with_documents(model, pictures):
    model.task_dict = {"task": {"val": [{"image": picture} for picture in pictures]}}
    return model


@pytest.fixture
def model(adapter, tiny_model_folder, pictures):
    found = adapter.Self1ELmms(pretrained=str(tiny_model_folder), device="cpu", batch_size="3", max_tiles=4)
    return with_documents(found, pictures)


def test_requests_are_answered_in_their_order(model, tiny_model, pictures):
    asked = [
        ("What?", 2, 4),
        ("<image>\nWhere is it?", 0, 6),
        ("How many?", 1, 4),
        ("What now?", 0, 6),
        ("Is it?", 3, 4),
    ]
    requests = [
        request_of(text, doc, max_new_tokens=tokens, do_sample=False, temperature=0) for text, doc, tokens in asked
    ]
    found = model.generate_until(requests)
    expected = [
        tiny_model.chat(pictures[doc], text.removeprefix("<image>\n"), max_new_tokens=tokens, max_tiles=4)
        for text, doc, tokens in asked
    ]
    assert found == expected
    assert len(model.cached) == len(requests)
    assert ("generate_until", requests[0].args[:2], found[0]) in model.cached


def test_answers_end_before_a_stop_word(model):
    [whole] = model.generate_until([request_of("What?", 0, max_new_tokens=8)])
    middle = whole[len(whole) // 2]
    [cut] = model.generate_until([request_of("What?", 0, max_new_tokens=8, until=["not there at all", middle])])
    assert cut == whole[: whole.index(middle)].rstrip()


def test_a_question_without_a_picture(model, tiny_model):
    [found] = model.generate_until([request_of("Say something.", 0, visuals=None, max_new_tokens=3)])
    assert found == tiny_model.chat(None, "Say something.", max_new_tokens=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"do_sample": True, "temperature": 0.7},
            r"task/val/0: do_sample=True, temperature=0.7; self1e answers greedily",
        ),
        ({"do_sample": True}, "do_sample=True; self1e answers greedily"),  # at temperature 1, transformers' default
        ({"num_beams": 3}, "num_beams=3"),
        ({"visuals": lambda doc: [doc["image"]] * 2}, "2 visuals .* takes one picture per question"),
        ({"visuals": lambda doc: ["video.mp4"]}, r"1 visuals \(str\)"),
    ],
)
def test_what_self1e_does_not_do_is_refused(model, changes, message):
    with pytest.raises(SettingError, match=message):
        model.generate_until([request_of("What?", 0, **changes)])


def test_scores_and_rounds_are_refused(model):
    with pytest.raises(NotImplementedError, match="does not score given ones"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="a task of one round"):
        model.generate_until_multi_round([])


def test_settings_are_checked(adapter, tiny_model_folder, monkeypatch):
    with pytest.raises(SettingError, match="unknown tiles; self1e takes pretrained"):
        adapter.Self1ELmms(pretrained=str(tiny_model_folder), tiles=3)
    with pytest.raises(SettingError, match="batch_size='few'"):
        adapter.Self1ELmms(pretrained=str(tiny_model_folder), device="cpu", batch_size="few")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="one process under lmms-eval"):
        adapter.Self1ELmms(pretrained=str(tiny_model_folder))


def test_the_entry_point_leads_to_the_class(adapter):
    path = Path(__file__).parents[2] / "pyproject.toml"
    points = tomllib.loads(path.read_text("utf-8"))["project"]["entry-points"]["lmms_eval.models"]
    module, _, function = points["self1e"].partition(":")
    assert module == ADAPTER
    manifest = getattr(adapter, function)()
    assert manifest.model_id == "self1e"
    place, _, name = manifest.simple_class_path.rpartition(".")
    found = getattr(importlib.import_module(place), name)
    assert found is adapter.Self1ELmms
    assert issubclass(found, _Lmms)
    assert found.is_simple is True


@pytest.mark.skipif(IS_INSTALLED, reason="lmms-eval is installed")
def test_without_lmms_eval_the_error_says_what_to_install():
    sys.modules.pop(ADAPTER, None)
    with pytest.raises(MissingDependencyError, match="pip install lmms-eval"):
        importlib.import_module(ADAPTER)


def test_the_installed_interface(tiny_model_folder, tiny_model, pictures):
    """The real base class, registry and request."""
    if not IS_INSTALLED:
        pytest.skip(
            "LMMS-EVAL MISSING: not installed, so the adapter is tested against a double of its interface only."
        )
    from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

    adapter = importlib.import_module(ADAPTER)
    assert issubclass(adapter.Self1ELmms, lmms)
    model = with_documents(adapter.Self1ELmms(pretrained=str(tiny_model_folder), device="cpu"), pictures)
    arguments = ("What?", {"max_new_tokens": 4}, lambda doc: [doc["image"]], 0, "task", "val")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    request = Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
    assert isinstance(pictures[0], Image.Image)
    assert model.generate_until([request]) == [tiny_model.chat(pictures[0], "What?", max_new_tokens=4)]


TASK = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/test.parquet}}}}
task: self1e_local
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}}
process_results: !function utils.results
metric_list:
  - {{metric: share, aggregation: !function utils.mean, higher_is_better: true}}
"""
UTILS = """
def visual(doc): return [doc["image"].convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def results(doc, found): return {"share": float(found[0] == doc["answer"])}
def mean(values): return sum(values) / len(values)
"""
RUN = """
import sys
from pathlib import Path
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
import self1e
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager

folder, model = Path(sys.argv[1]), sys.argv[2]
asked = self1e.load(model, device="cpu")
rows = []
for path in sorted(folder.glob("*.png")):
    for question in ("What is it?", "How many are there?"):
        answer = asked.chat(path, question, max_new_tokens=6, max_tiles=2)
        rows.append({"image": Pictures.open(path), "question": question, "answer": answer})
columns = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
Dataset.from_list(rows, features=columns).to_parquet(folder / "test.parquet")
found = evaluator.simple_evaluate(
    model="self1e",
    model_args=f"pretrained={model},max_tiles=2",
    tasks=["self1e_local"],
    task_manager=TaskManager("ERROR", include_path=str(folder), include_defaults=False),
    batch_size="3",
    device="cpu",
)
print("SHARE", found["results"]["self1e_local"]["share,none"], len(rows))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_installed_evaluator_finds_the_model_and_hears_its_answers(tiny_model_folder, pictures, tmp_path):
    """lmms-eval's registry, task and evaluator, in a process of its own: its imports warn."""
    if not IS_INSTALLED:
        pytest.skip("LMMS-EVAL MISSING: not installed; pip install lmms-eval runs this test.")
    for number, picture in enumerate(pictures[:2]):
        picture.convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "local.yaml").write_text(TASK.format(folder=tmp_path), "utf-8")
    (tmp_path / "utils.py").write_text(UTILS, "utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", RUN, str(tmp_path), str(tiny_model_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SHARE 1.0 4" in done.stdout  # what `chat` says, question for question

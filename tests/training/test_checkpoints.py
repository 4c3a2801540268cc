"""Training that loses no work: kills, full disks, damaged and foreign checkpoints, signals."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments, set_seed

from self1e.errors import CheckpointError, OutputError, SettingError
from self1e.training import checkpointing
from self1e.training.checkpointing import checkpoints, last_checkpoint, write_manifest
from self1e.training.stopping import Interrupted
from self1e.training.trainer import make_trainer

SCRIPT = Path(__file__).with_name("killing.py")
pytestmark = pytest.mark.usefixtures("one_thread")


def run_and_kill(folder, *options, timeout=280):
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_takes_the_same_steps(tmp_path, workers):
    found = run_and_kill(tmp_path, "--kills", 1, "--torn", 2, "--workers", workers, "--steps", 14, "--seed", workers)
    assert found["same"]
    assert found["steps"] == 14
    assert len(found["reached"]) == 3
    assert found["left"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("workers", "real"), [(0, False), (1, False), (1, True)])
def test_twenty_kills(tmp_path, workers, real, tiny_model_folder):
    model = ["--model", tiny_model_folder] if real else []
    options = ["--kills", 12, "--torn", 8, "--workers", workers, "--steps", 60, "--seed", 20 + workers, *model]
    found = run_and_kill(tmp_path, *options, timeout=1700)
    assert found["same"]
    assert found["steps"] == 60
    assert len(found["reached"]) == 20
    assert found["left"] == []


@pytest.fixture(scope="module")
def killing(load_script):
    return load_script("killing", "tests/training")


class Counted(torch.utils.data.Dataset):
    """Remembers which items were read."""

    def __init__(self, items):
        self.items, self.read = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        return self.items[index]


class Then(TrainerCallback):
    """Do something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.fixture
def make(killing, tmp_path):
    """Make a trainer of the small net; what differs is given by name."""

    def make(folder="run", *, net=None, data=None, batch=2, accumulation=2, muon=False, callbacks=(), **settings):
        set_seed(0)
        net = net or killing.Net()
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **{
                "max_steps": 6,
                "logging_steps": 1,
                "save_steps": 2,
                "save_total_limit": 2,
                "learning_rate": 1e-2,
                "use_cpu": True,
                "remove_unused_columns": False,
                "report_to": [],
                "disable_tqdm": True,
                **settings,
            },
        )
        optimizer = killing.MuonWithAdamW(net, learning_rate=1e-3, matrix_learning_rate=1e-2) if muon else None
        data = data or killing.Numbers(0, length=40)
        trainer, _ = make_trainer(net, data, None, arguments, mean_decay=0.9, optimizer=optimizer)  # type: ignore[arg-type]
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer

    return make


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_resuming_reads_no_item_twice_and_none_for_nothing(make, killing, tmp_path):
    data = Counted(killing.Numbers(0, length=40))
    make(data=data, max_steps=2).train()
    again = Counted(killing.Numbers(0, length=40))
    trainer = make(data=again)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert again.read[0] == 8
    assert sorted(set(again.read)) == again.read
    assert len(losses(trainer)) == 6


def test_a_half_written_checkpoint_is_never_taken_and_is_cleaned_up(make, tmp_path):
    make(max_steps=4).train()
    run = tmp_path / "run"
    partial = run / ".checkpoint-6.partial" / "checkpoint-6"
    shutil.copytree(run / "checkpoint-4", partial)
    (run / "checkpoint-2").rename(run / ".checkpoint-2.removed")
    assert last_checkpoint(run) == run / "checkpoint-4"
    trainer = make(max_steps=5)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest", "broken manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(make, tmp_path, caplog, damage):
    whole = make("whole")
    whole.train()
    make().train()
    newest = tmp_path / "run" / "checkpoint-6"
    weights = newest / "model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text('{"format": 1')
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    assert "Going back to the checkpoint before" in caplog.text
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(whole)
    one, other = (load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "run" / "set-aside-checkpoint-6").is_dir()


def test_where_no_checkpoint_is_whole_nothing_starts_anew_silently(make, tmp_path):
    make(max_steps=2).train()
    (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds 1 checkpoint\(s\), and none is whole.*optimizer.pt has 0 bytes"):
        make().train(resume_from_checkpoint=True)
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_nothing_in_a_checkpoint_is_a_pickle_of_more_than_numbers(make, tmp_path):
    make(max_steps=2, muon=True).train()
    folder = tmp_path / "run" / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "mean_of_weights.safetensors", "training_args.json", "manifest.json"} <= names
    assert "training_args.bin" not in names
    for name in ("optimizer.pt", "scheduler.pt"):
        assert torch.load(folder / name, weights_only=True)


def test_checkpoints_of_something_else_are_refused(make, tmp_path, caplog):
    make(max_steps=2).train()
    other = torch.nn.Module()
    other.layers = torch.nn.ModuleList([torch.nn.Linear(16, 9)])
    with pytest.raises(
        CheckpointError, match=r"of another model: layers.1.weight is not in the model; .*, and \d+ more"
    ):
        make(net=other).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="state of AdamW, and the optimiser is MuonWithAdamW"):
        make(muon=True).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="4 items per step, and now 8"):
        make(batch=4).train(resume_from_checkpoint=True)
    with pytest.raises(SettingError, match="holds checkpoint-2 of a run"):
        make().train()
    path = tmp_path / "run" / "checkpoint-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"versions": {**manifest["versions"], "torch": "1.0"}}))
    make(max_steps=3).train(resume_from_checkpoint=True)
    assert "torch 1.0 ->" in caplog.text
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="is of format 99, and this self1e reads up to 1; upgrade"):
        make().train(resume_from_checkpoint=path.parent)


def test_another_split_of_the_same_batch_may_go_on(make):
    make(max_steps=2).train()
    trainer = make(batch=4, accumulation=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_a_disk_that_fills_while_saving_keeps_the_last_good_checkpoint(make, tmp_path):
    """The system refuses every byte of a file behind the first 8000: files are torn as by a full disk."""
    whole = make("whole")
    whole.train()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = Then(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1])))
    message = r"step 4 could not be saved: .*bytes are needed in .* are free.*checkpoint-2"
    try:
        with pytest.raises(OutputError, match=message):
            make(callbacks=[fill]).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "mean_of_weights.safetensors"])
def test_no_space_left_in_any_file_is_the_same_error(make, tmp_path, monkeypatch, name):
    def full(*arguments, **others):
        raise OSError(28, "No space left on device")

    places = {
        "model.safetensors": ("safetensors.torch.save_file",),
        "optimizer.pt": ("torch.save",),
        "mean_of_weights.safetensors": ("self1e.training.trainer.MeanOfWeights.save",),
    }
    make(max_steps=2).train()
    for place in places[name]:
        monkeypatch.setattr(place, full)
    with pytest.raises(OutputError, match="No space left on device"):
        make().train(resume_from_checkpoint=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    assert last_checkpoint(tmp_path / "run") is not None


def test_too_little_space_is_seen_before_writing(make, tmp_path, monkeypatch):
    make(max_steps=2).train()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1234))
    needed = r"about [\d,]+ bytes, and 1,234 are free"
    with pytest.raises(OutputError, match=needed):
        make().train(resume_from_checkpoint=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


def test_the_estimate_of_a_checkpoint_is_not_too_small(make, tmp_path):
    trainer = make(max_steps=2)
    trainer.train()
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoint-2").iterdir())
    assert size <= trainer._bytes_of_checkpoint() <= size + 2**20


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_finishes_the_step_saves_and_ends_with_its_status(make, tmp_path, caplog, signum, status, workers):
    whole = make("whole")
    whole.train()

    def stop():
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    trainer = make(callbacks=[Then(2, stop)], save_steps=100, dataloader_num_workers=workers)
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.code == status
    assert signal.getsignal(signum) is before
    # The signal came after step 2 had been counted: step 3 was in hand, or this one.
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-3"
    assert "Run the same command with resume to go on" in caplog.text
    trainer = make(dataloader_num_workers=workers)
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(whole)


def test_a_second_signal_stops_at_once():
    code = (
        "import os, signal, time\nfrom self1e.training.stopping import StopSignals\n"
        "with StopSignals() as signals:\n    os.kill(os.getpid(), signal.SIGTERM)\n    assert signals.received == 15\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGTERM
    assert "once more stops at once" in done.stderr


def test_the_best_checkpoint_stays(tmp_path):
    for step in (1, 2, 3, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        write_manifest(folder, {"step": step})
    checkpointing.rotate(tmp_path, 2, [tmp_path / "checkpoint-1"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    checkpointing.rotate(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    checkpointing.rotate(tmp_path, None)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]


def test_going_on_from_an_older_checkpoint_sets_the_later_ones_aside(make, tmp_path):
    make().train()
    run = tmp_path / "run"
    trainer = make(max_steps=5)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-4", "checkpoint-5", "set-aside-checkpoint-6"]

"""What a step sees, whatever the number of processes; pictures that cannot be read; losses that are not numbers."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainingArguments, set_seed

from self1e.data.epoch import Epoch
from self1e.data.mixture import Part
from self1e.data.scenes import Scenes
from self1e.errors import DatasetError, SettingError, TrainingError
from self1e.training.checkpointing import last_checkpoint
from self1e.training.guards import Guarded
from self1e.training.order import Epochs, GlobalBatches
from self1e.training.trainer import Self1ETrainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("split", [(1, 1, 8), (1, 4, 2), (2, 2, 2), (2, 1, 4), (4, 1, 2), (4, 2, 1)])
def test_every_number_of_processes_sees_the_same_steps(split):
    processes, accumulation, batch_size = split
    shares = [
        GlobalBatches(50, batch_size=batch_size, accumulation=accumulation, processes=processes, process=process)
        for process in range(processes)
    ]
    assert {len(share) for share in shares} == {6 * accumulation}
    for step in range(6):
        seen = []
        for share in shares:
            batches = list(share)[step * accumulation : (step + 1) * accumulation]
            assert batches == [share.indices(step, micro) for micro in range(accumulation)]
            seen += [item for batch in batches for item in batch]
        assert seen == list(range(8 * step, 8 * step + 8))


def test_too_little_data_for_one_step_is_an_error():
    with pytest.raises(
        SettingError, match=r"has 7 items, and one step sees 8 \(2 process\(es\), 2 micro-batch\(es\) of 2"
    ):
        GlobalBatches(7, batch_size=2, accumulation=2, processes=2)


def test_epochs_follow_each_other_each_in_its_own_order():
    parts = {"scenes": Part(samples=Scenes("train", size_wh=(64, 64), length=7))}
    made = []

    def make_epoch(number):
        made.append(number)
        return Epoch(parts, batch_size=2, queries=1, seed=3, epoch=number)

    run = Epochs(make_epoch, 3, multiple=2)
    assert len(run) == 18
    orders = [[run[6 * epoch + i].source for i in range(6)] for epoch in range(3)]
    assert all(len(set(order)) == 6 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert made == [0, 1, 2]
    assert run[8].source == Epoch(parts, batch_size=2, queries=1, seed=3, epoch=1)[2].source
    with pytest.raises(IndexError, match="Item 18 of 3 epochs of 6"):
        run[18]
    with pytest.raises(SettingError, match="fewer than the 8 of one step"):
        Epochs(make_epoch, 3, multiple=8)
    with pytest.raises(SettingError, match="at least 1"):
        Epochs(make_epoch, 0)


class Pictures(Dataset):
    """Items that are their index; some of them cannot be read."""

    def __init__(self, broken, length=12):
        self.broken, self.length = broken, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise self.broken[index]
        return index


@pytest.fixture
def broken():
    return {
        3: DatasetError("ade/3.jpg is cut short"),
        4: OSError("4.png: truncated"),
        11: SyntaxError("broken PNG file"),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_readable_item_takes_the_place_of_one_that_is_not(broken, workers):
    guarded = Guarded(Pictures(broken), most=3)
    loader = DataLoader(guarded, batch_size=4, num_workers=workers)
    for _ in range(2):  # the same in each epoch, and no problem counts twice
        assert torch.cat(list(loader)).tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
    assert dict(guarded.problems()) == {
        3: "ade/3.jpg is cut short",
        4: "4.png: truncated",
        11: "broken PNG file",
    }


def test_a_problem_is_logged_with_its_name(broken, caplog):
    guarded = Guarded(Pictures(broken))
    assert [guarded[3], guarded[3]] == [5, 5]
    assert [record.getMessage() for record in caplog.records] == [
        "Item 3 cannot be read and is passed over (1 of 10): ade/3.jpg is cut short",
        "Item 4 cannot be read and is passed over (2 of 10): 4.png: truncated",
    ]


def test_a_place_in_a_micro_batch_keeps_its_meaning(broken):
    assert Guarded(Pictures(broken), stride=4)[3] == 7
    assert Guarded(Pictures(broken), stride=4)[11] == 7  # 3 is not readable either


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_a_few_are_an_error_that_lists_them(broken, workers):
    guarded = Guarded(Pictures(broken), most=2)
    message = r"(?s)3 items cannot be read, and 2 may be.*item 3: ade/3.jpg.*item 4: 4.png.*item 11: broken PNG"
    with pytest.raises(DatasetError, match=message):
        list(DataLoader(guarded, batch_size=4, num_workers=workers))


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        Guarded(Pictures({0: ZeroDivisionError()}))[0]
    with pytest.raises(DatasetError, match="No item of the data set can be read"):
        Guarded(Pictures({i: OSError("the same disk") for i in range(12)}))[0]
    with pytest.raises(SettingError, match="at least 0"):
        Guarded(Pictures({}), most=-1)


class Item(dict):
    """A batch element with a source, as a mixture's items have."""

    @property
    def source(self):
        return f"set/{int(self['index']):02d}"


class Poisoned(Dataset):
    """Items with a factor of the loss: not a number for some."""

    def __init__(self, factors, length=24):
        self.factors, self.length = factors, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        values = np.random.default_rng(index).normal(size=4).astype(np.float32)
        return Item(
            x=torch.from_numpy(values), factor=self.factors.get(index, 1.0), index=index, source=f"set/{index:02d}"
        )


def collate(items):
    return {"x": torch.stack([i["x"] for i in items]), "factor": torch.tensor([i["factor"] for i in items])}


class RootOfZero(torch.autograd.Function):
    """A value that is fine with a gradient that is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x, factor):
        y = self.layer(x)[:, 0]
        if (factor == 2.0).any():
            y = RootOfZero.apply(y)
        loss = (y * factor).square().mean()
        return {"loss": loss, "losses": {"square": loss}}


class Weights(TrainerCallback):
    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = model.layer.weight.detach().clone()


def train(folder, factors, *, most_skipped=0, resume=None, **settings):
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        **{"max_steps": 5, "save_steps": 1, "logging_steps": 1, "learning_rate": 0.1, **settings},
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    weights = Weights()
    trainer = Self1ETrainer(
        model=Net(),
        args=arguments,
        train_dataset=Poisoned(factors),
        data_collator=collate,
        callbacks=[weights],
        most_skipped=most_skipped,
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        trainer.weights = weights.after
    return trainer


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_and_names_its_pictures(tmp_path, factor):
    # Step 3 sees items 8 to 11; the second micro-batch is bad.
    with pytest.raises(TrainingError) as found:
        train(tmp_path, {10: factor})
    message = str(found.value)
    assert message.startswith("Step 3: the loss is not a number; no weight was changed by it.")
    assert "Its items: set/10 (item 10), set/11 (item 11)." in message
    assert f"{tmp_path / 'checkpoint-2'} is the last checkpoint" in message
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    good = train(tmp_path, {}, resume=True)
    assert good.state.global_step == 5
    assert torch.isfinite(good.model.layer.weight).all()


def test_a_gradient_that_is_not_a_number_stops_too(tmp_path):
    with pytest.raises(TrainingError, match=r"Step 1: the gradient \(norm nan\) .*set/00 .*set/03 .*no checkpoint yet"):
        train(tmp_path, {1: 2.0})
    assert last_checkpoint(tmp_path) is None


def test_bad_steps_may_be_skipped_up_to_a_limit_that_a_resumed_run_remembers(tmp_path, caplog):
    factors = {4: math.nan, 12: 2.0}  # steps 2 and 4
    whole = train(tmp_path / "whole", factors, most_skipped=2)
    assert torch.equal(whole.weights[2], whole.weights[1])
    assert torch.equal(whole.weights[4], whole.weights[3])
    assert not torch.equal(whole.weights[3], whole.weights[2])
    assert "Step 2 is skipped, its loss is not a number. Its items: set/04 (item 4), set/05 (item 5)" in caplog.text
    assert "Step 4 is skipped, its gradient (norm nan)" in caplog.text
    json.dumps(whole.state.log_history, allow_nan=False)
    train(tmp_path / "parts", {}, most_skipped=1, max_steps=1, lr_scheduler_type="constant")
    with pytest.raises(TrainingError, match=r"Step 4: .* 1 such step\(s\) before were skipped"):
        train(tmp_path / "parts", factors, most_skipped=1, resume=True, lr_scheduler_type="constant")
    with pytest.raises(TrainingError, match=r"Step 4: .* 1 such step\(s\) before were skipped"):
        train(tmp_path / "parts", factors, most_skipped=1, resume=True, lr_scheduler_type="constant")
    with pytest.raises(SettingError, match="most_skipped=-1"):
        train(tmp_path / "none", {}, most_skipped=-1)

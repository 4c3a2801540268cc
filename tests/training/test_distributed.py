"""Many processes, one run: losses, gradients and checkpoints of 1, 2 and 4 processes; shipped configurations."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import self1e
from self1e.configuration import Self1EConfig
from self1e.errors import CheckpointError, SettingError
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints.files import read_tensors
from self1e.training import distributed
from self1e.training.adapters import attach_adapters
from self1e.training.recipes import RECIPES, Recipe, change, find_recipe
from self1e.training.trainer import Self1ETrainer

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def ranks(load_script):
    return load_script("ranks", "tests/training")


def start(model, out, jobs, processes=1):
    """Start processes that train together; one thread each, on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out.mkdir(parents=True, exist_ok=True)
    common = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    started = []
    for rank in range(processes):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {} if processes == 1 else {name: str(value) for name, value in (group | address).items()}
        log = (out / f"log-{rank}.txt").open("w")
        command = [sys.executable, str(SCRIPT), str(model), str(out), *jobs]
        process = subprocess.Popen(
            command, env={**common, **own, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
        started.append(SimpleNamespace(process=process, log=log))
    return started


def wait(started, timeout):
    """Wait for all; if one fails or all hang, the others are ended too."""
    try:
        for each in started:
            status = each.process.wait(timeout=timeout)
            assert status == 0, Path(each.log.name).read_text()[-3000:]
    finally:
        for each in started:
            each.process.kill()
            each.process.wait()
            each.log.close()


def assert_same(one, many, *, rtol=1e-5):
    """Compare files of tensors, each tensor by its largest number."""
    one, many = load_file(one), load_file(many)
    assert one.keys() == many.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            many[name],
            expected,
            rtol=0,
            atol=rtol * float(expected.abs().max()) + 1e-8,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def losses(run):
    lines = json.loads((run / "log.json").read_text())
    return [[line[name] for name in ("loss", "loss_text", "loss_bce", "loss_dice")] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def two_and_one(tmp_path_factory, tiny_model_folder):
    """What two processes and one have written."""
    out = tmp_path_factory.mktemp("ranks")
    two = start(
        tiny_model_folder, out / "two", ["pass:ddp", "pass:fsdp2", "train:fsdp2", "unreadable:ddp"], processes=2
    )
    one = start(tiny_model_folder, out / "one", ["pass:alone", "train:alone"])
    wait([*two, *one], timeout=250)
    return out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_loss_and_gradients_of_two_processes_are_those_of_one_whatever_is_in_their_batches(two_and_one, strategy):
    found = load_file(two_and_one / "two" / f"pass-{strategy}" / "pass.safetensors")
    assert len(found) == 73
    assert all(bool(tensor.any()) for tensor in found.values())
    assert_same(
        two_and_one / "one/pass-alone/pass.safetensors", two_and_one / "two" / f"pass-{strategy}/pass.safetensors"
    )


def test_steps_of_two_processes_are_those_of_one(two_and_one):
    one, two = two_and_one / "one/train-alone", two_and_one / "two/train-fsdp2"
    for step in (1, 2, 3, 4):
        assert_same(one / f"gradients-{step}.safetensors", two / f"gradients-{step}.safetensors", rtol=1e-4)
    torch.testing.assert_close(torch.tensor(losses(two)), torch.tensor(losses(one)), rtol=1e-5, atol=2e-4)
    assert losses(one)[1][2:] == [0, 0]  # a step without any mask


def test_a_divided_run_saves_whole_checkpoints_and_a_model_that_loads(two_and_one):
    one, two = two_and_one / "one/train-alone", two_and_one / "two/train-fsdp2"
    assert_same(one / "checkpoint-4/model.safetensors", two / "checkpoint-4/model.safetensors", rtol=1e-4)
    states = [torch.load(run / "checkpoint-4/optimizer.pt", weights_only=True)["state"] for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    for index, values in states[0].items():
        for name, value in values.items():
            assert type(states[1][index][name]) is torch.Tensor
            torch.testing.assert_close(states[1][index][name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    assert json.loads((two / "checkpoint-4/config.json").read_text())["architectures"] == [
        "Self1EForConditionalGeneration"
    ]
    assert self1e.load(two / "model", device="cpu") is not None


def test_the_limit_of_unreadable_pictures_is_one_for_all_processes(two_and_one):
    for process in (0, 1):
        told = (two_and_one / f"two/unreadable-ddp/told-{process}.txt").read_text()
        assert told.startswith("2 items cannot be read, and 1 may be passed over")
        assert "item 0: noise/0 is broken" in told
        assert "item 2: noise/2 is broken" in told


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory, tiny_model_folder):
    out = tmp_path_factory.mktemp("saved")
    two = start(tiny_model_folder, out, ["train:ddp", "train:fsdp2"], processes=2)
    wait(two, timeout=600)
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("saved", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("processes", "strategy"), [(1, "alone"), (4, "ddp"), (4, "fsdp2")])
def test_what_two_have_saved_one_and_four_go_on_from(
    saved_by_two, tmp_path, tiny_model_folder, saved, processes, strategy
):
    before = saved_by_two / f"train-{saved}"
    wait(start(tiny_model_folder, tmp_path, [f"resume:{strategy}:{before / 'checkpoint-2'}"], processes), timeout=800)
    after = tmp_path / f"resume-{strategy}"
    for step in (3, 4):
        assert_same(before / f"gradients-{step}.safetensors", after / f"gradients-{step}.safetensors", rtol=1e-4)
    assert_same(before / "checkpoint-4/model.safetensors", after / "checkpoint-4/model.safetensors", rtol=1e-4)
    torch.testing.assert_close(torch.tensor(losses(after)), torch.tensor(losses(before)), rtol=1e-5, atol=2e-4)
    assert self1e.load(after / "model", device="cpu") is not None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_loss_and_gradients_of_four_processes_are_those_of_one(tmp_path, tiny_model_folder):
    four = start(tiny_model_folder, tmp_path / "four", ["pass:ddp", "pass:fsdp2"], processes=4)
    one = start(tiny_model_folder, tmp_path / "one", ["pass:alone"])
    wait([*four, *one], timeout=1200)
    for strategy in ("ddp", "fsdp2"):
        assert_same(tmp_path / "one/pass-alone/pass.safetensors", tmp_path / f"four/pass-{strategy}/pass.safetensors")


NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: DS_BUILD_OPS=0 pip install deepspeed"
)


def norms(run):
    return [line["grad_norm"] for line in json.loads((run / "log.json").read_text()) if "grad_norm" in line]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@NEEDS_DEEPSPEED
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_on_two_processes_takes_the_steps_of_one_and_goes_on(tmp_path, tiny_model_folder, strategy):
    one = start(tiny_model_folder, tmp_path / "one", ["train:alone"])
    wait(one, timeout=600)
    two = start(tiny_model_folder, tmp_path / "two", [f"train:{strategy}"], processes=2)
    wait(two, timeout=1500)
    alone, shared = tmp_path / "one/train-alone", tmp_path / f"two/train-{strategy}"
    assert_same(alone / "gradients-1.safetensors", shared / "gradients-1.safetensors", rtol=1e-4)
    torch.testing.assert_close(torch.tensor(losses(shared)), torch.tensor(losses(alone)), rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(torch.tensor(norms(shared)), torch.tensor(norms(alone)), rtol=1e-5, atol=0)
    assert_same(alone / "checkpoint-4/model.safetensors", shared / "checkpoint-4/model.safetensors", rtol=1e-4)
    assert self1e.load(shared / "model", device="cpu") is not None

    again = start(tiny_model_folder, tmp_path / "two", [f"resume:{strategy}:{shared / 'checkpoint-2'}"], processes=2)
    wait(again, timeout=1500)
    after = tmp_path / f"two/resume-{strategy}"
    assert losses(after) == losses(shared)
    assert_same(shared / "checkpoint-4/model.safetensors", after / "checkpoint-4/model.safetensors", rtol=1e-6)


TWO = ["--num_processes", "2", "--main_process_port", "0"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", *TWO],
    "accelerate with fsdp2.yaml": [
        "accelerate.commands.launch", "--config_file", str(distributed.find_config("fsdp2.yaml")), *TWO
    ],
}  # fmt: skip


def launch(launcher, out, model, *settings, timeout=800):
    """Run the command as people do; returns its error output."""
    settings = [
        "data.source=scenes", "data.pictures=8", "data.workers=0", "evaluation.on=none", "optim.global_batch=4",
        "optim.micro_batch=2", "optim.bf16=false", "model.frozen_dtype=float32", "adapters.rank=2",
        "saving.log_every=1", *settings,
    ]  # fmt: skip
    command = [
        sys.executable, "-m", *launcher, "-m", "self1e", "train", "self1e-internvl3-2b", "--model", str(model),
        "--out", str(out), "--device", "cpu",
    ]  # fmt: skip
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(out.parent / "no-configuration-of-the-user")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_torchrun_and_accelerate_start_the_same_run(tmp_path, tiny_model_folder):
    runs = {
        ("torchrun", "ddp"): ["distributed.strategy=ddp"],
        ("accelerate", "ddp"): [],
        ("torchrun", "fsdp2"): ["distributed.strategy=fsdp2"],
        ("accelerate with fsdp2.yaml", "fsdp2"): [],
    }
    found = {}
    for (launcher, strategy), settings in runs.items():
        out = tmp_path / launcher / strategy
        status, told = launch(LAUNCHERS[launcher], out, tiny_model_folder, *settings)
        assert status == 0, told[-3000:]
        manifest = json.loads((out / "checkpoint-2" / "manifest.json").read_text())
        assert manifest["processes"] == 2
        assert self1e.load(out / "model", device="cpu") is not None
        found[strategy] = [*found.get(strategy, []), (losses(out), load_file(out / "checkpoint-2/model.safetensors"))]
    for (one, weights), (other, others) in found.values():
        assert one == other
        assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_accelerate_on_a_cpu_does_not_start_one_process_in_place_of_two(tmp_path, tiny_model_folder):
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    status, told = launch(launcher, tmp_path / "out", tiny_model_folder, timeout=250)
    assert status != 0
    assert "has started one process" in told
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- one pass alone

SWITCHES = {
    json.dumps(recipe.model.switches(), sort_keys=True): name
    for name, recipe in ((name, make()) for name, make in RECIPES.items())
    if isinstance(recipe, Recipe) and not recipe.model.keep_switches
}
"""Of all recipes, with the name of one that has them."""


@pytest.mark.parametrize("switches", SWITCHES, ids=SWITCHES.get)
def test_every_weight_gets_a_gradient_whatever_a_micro_batch_holds(ranks, tiny_model_folder, switches):
    config = Self1EConfig.from_pretrained(tiny_model_folder, **json.loads(switches))
    model = Self1EForConditionalGeneration(config)
    for name, batch in ranks.micro_batches(tiny_model_folder, config.num_seg_tokens).items():
        model.zero_grad()
        model.train()(**batch).loss.backward()
        missing = [parameter for parameter, value in model.named_parameters() if value.grad is None]
        assert missing == [], name
        learns = any(bool(value.grad.any()) for value in model.mask_head.parameters())
        assert learns == name.startswith("masks")


def record_order(model):
    """Note which parts run, which outputs get a gradient and which weights, in order; the head's runs aside."""
    order = []

    def note_backward(name, output):
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda _: order.append(f"{name} goes back"))

    for name, part in model.named_modules():
        if not name.startswith("mask_head"):
            part.register_forward_pre_hook(lambda *_, n=name: order.append(f"{n} runs"))
            part.register_forward_hook(lambda _, __, output, n=name: note_backward(n, output))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, n=name: order.append(f"{n} has its gradient"))
    return order


@pytest.mark.parametrize("embeddings", ["full", "frozen"])
@pytest.mark.parametrize("switches", SWITCHES, ids=SWITCHES.get)
def test_parts_run_and_gradients_come_in_one_order_whatever_a_micro_batch_holds(
    ranks, tiny_model_folder, switches, embeddings
):
    # ZeRO adds up gradients, and gathers weights, in the order in which they are ready and needed on each process.
    config = Self1EConfig.from_pretrained(tiny_model_folder, **json.loads(switches))
    model = Self1EForConditionalGeneration(config).train()
    attach_adapters(model, replace(ranks.ADAPTERS, input_embeddings=embeddings, output_embeddings=embeddings))
    order = record_order(model)
    found = {}
    for name, batch in ranks.micro_batches(tiny_model_folder, config.num_seg_tokens).items():
        order.clear()
        model(**batch).loss.backward()
        found[name] = list(order)
    expected = found.pop("masks")
    assert sum(line.endswith("has its gradient") for line in expected) > 60
    for name, lines in found.items():
        assert lines == expected, name


def test_parts_without_use_count_nothing(ranks, tiny_model_folder):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder)
    for batch in ranks.micro_batches(tiny_model_folder).values():
        losses = [model.train(mode)(**batch).loss for mode in (True, False)]
        assert losses[0].item() == losses[1].item()
        assert model.train()(**batch).losses.keys() == {"text", "bce", "dice"}


# --------------------------------------------------------------------------- what is refused, and shipped


@pytest.fixture
def environment(monkeypatch):
    """Set variables as a launcher does."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
            monkeypatch.delenv(name)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_a_strategy_is_what_the_recipe_or_the_launcher_says(environment):
    assert distributed.choose_strategy(None, processes=1) is None
    assert distributed.choose_strategy("ddp", processes=1) is None
    environment(WORLD_SIZE="2")
    assert distributed.choose_strategy(None, processes=2) == "ddp"
    assert distributed.choose_strategy("fsdp2", processes=2) == "fsdp2"
    environment(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert distributed.choose_strategy(None, processes=2) == "fsdp2"
    with pytest.raises(SettingError, match="'zero2', but accelerate was told 'fsdp2'"):
        distributed.choose_strategy("zero2", processes=2)
    environment(FSDP_VERSION="1")
    with pytest.raises(SettingError, match="FSDP version 1, expected 2"):
        distributed.choose_strategy(None, processes=2)


def test_what_cannot_be_had_is_said_at_once(environment, monkeypatch):
    with pytest.raises(SettingError, match="needs several processes; start them: torchrun"):
        distributed.choose_strategy("fsdp2", processes=1)
    environment(WORLD_SIZE="2")
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="pip install deepspeed"):
        distributed.choose_strategy("zero2", processes=2)
    monkeypatch.setattr(distributed, "find_spec", lambda name: SimpleNamespace())
    assert distributed.choose_strategy("zero3", processes=2) == "zero3"


def test_a_launcher_that_leaves_processes_to_mpi_is_noticed(environment):
    environment(ACCELERATE_USE_CPU="True", ACCELERATE_MIXED_PRECISION="no")
    assert distributed.choose_strategy(None, processes=1) is None  # --num_processes 1
    environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    with pytest.raises(SettingError, match=r"has started one process.*--multi_gpu.*--device cpu"):
        distributed.choose_strategy(None, processes=1)
    environment(WORLD_SIZE="2")
    assert distributed.choose_strategy(None, processes=2) == "ddp"


@pytest.mark.parametrize(
    ("saved", "now", "told"),
    [
        ((2, 2), (0, 2), r"ZeRO-2 on 2 process\(es\), and this run is one process alone, DDP or FSDP2"),
        ((0, 2), (3, 2), r"one process alone, DDP or FSDP2, and this run is ZeRO-3 on 2 process\(es\)"),
        ((2, 2), (3, 2), r"ZeRO-2 on 2 .* ZeRO-3 on 2"),
        ((3, 2), (3, 4), r"ZeRO-3 on 2 .* ZeRO-3 on 4 .*on as many processes"),
    ],
)
def test_a_checkpoint_of_deepspeed_goes_on_as_it_was_started(saved, now, told):
    (stage, processes), (stage_now, processes_now) = saved, now
    trainer: Any = SimpleNamespace(
        _resumed={"global_batch": 4, "processes": processes, "zero_stage": stage},
        _global_batch=lambda: 4,
        zero_stage=stage_now,
        args=SimpleNamespace(world_size=processes_now),
    )
    with pytest.raises(CheckpointError, match=told):
        Self1ETrainer._compare_runs(trainer, Path("checkpoint-2"))
    trainer.zero_stage, trainer.args.world_size = stage, processes
    Self1ETrainer._compare_runs(trainer, Path("checkpoint-2"))


def test_weights_are_divided_by_two_strategies_of_four():
    assert [distributed.shards(name, 4) for name in (None, "ddp", "zero2", "zero3", "fsdp2")] == [1, 1, 1, 4, 4]


def test_the_strategy_is_a_setting_of_each_recipe():
    recipe = change(find_recipe("self1e-internvl3-2b"), ["distributed.strategy=zero3"])
    assert recipe.distributed.strategy == "zero3"
    assert replace(recipe.distributed, strategy=None).strategy is None


ZERO_KEYS = {
    "stage": int,
    "overlap_comm": bool,
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "allgather_bucket_size": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_gather_16bit_weights_on_model_save": bool,
}
"""Of DeepSpeed's documentation, with their types."""


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_configurations_of_deepspeed_leave_to_the_recipe_what_is_the_recipes(name, stage):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    path = distributed.find_config(f"{name}.json")
    settings = distributed.deepspeed_settings(name)
    zero = settings.pop("zero_optimization")
    assert {key: type(value) for key, value in zero.items()} == {key: ZERO_KEYS[key] for key in zero}
    read = HfDeepSpeedConfig(str(path))
    assert (read.get_value("zero_optimization.stage"), read.is_zero2(), read.is_zero3()) == (
        stage,
        stage == 2,
        stage == 3,
    )
    # Batch, clipping and precision come from the recipe; so do optimiser and schedule, which are left out.
    assert settings == {
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }
    if stage == 3:  # or no process could write the model
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True


def test_the_configuration_of_accelerate_makes_it_say_fsdp2(environment):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = str(distributed.find_config("fsdp2.yaml"))
    config = load_config_from_file(path)
    assert config.distributed_type.value == "FSDP"
    args = launch_command_parser().parse_args(["--config_file", path, "-m", "self1e", "train", "nano"])
    for name, value in config.fsdp_config.items():
        setattr(args, name, str(value).lower() if isinstance(value, bool) else str(value))
    args.use_fsdp, args.mixed_precision, args.num_processes = True, config.mixed_precision, config.num_processes
    args.num_machines, args.dynamo_backend = config.num_machines, "no"
    told = prepare_multi_gpu_env(args)
    environment(WORLD_SIZE="8", **{name: told[name] for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION")})
    assert distributed.choose_strategy(None, processes=8) == "fsdp2"


# --------------------------------------------------------------------------- whole tensors


def test_weights_of_a_checkpoint_may_lie_in_several_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = read_tensors(tmp_path)
    assert (tensors["a"].tolist(), tensors["b"].tolist()) == ([1, 1], [0, 0, 0])


def test_a_tensor_that_a_checkpoint_lacks_is_named(tmp_path):
    model = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match="lacks 1 tensors: bias"):
        distributed.load_model(model, {"weight": torch.zeros(3, 2)}, tmp_path)
    assert model.weight.count_nonzero() == 0


def test_tied_weights_are_gathered_once():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    tensors = distributed.gather_model(torch.nn.Sequential(first, second), keep=True)
    assert tensors["0.weight"] is tensors["1.weight"]
    assert distributed.gather_model(first, keep=False) == {}

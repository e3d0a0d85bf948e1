"""Several processes on the CPU: as one process with their batches together, and none left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

AMT2 = "configs/mini/stages/amt2.yaml"
TRAIN_NET = "tools/train_net.py"
SCHEDULE = {
    "PIPELINE.TARGET": "bbbc038",
    "AMT2.ROUNDS": 2,
    "AMT2.MOCO_ITERS": 5,
    "AMT2.COCO_ITERS": 5,
    "AMT2.MOCO_SOLVER.OPTIMIZER": "SGD",
    "AMT2.MOCO_SOLVER.BASE_LR": 0.02,
    "AMT2.MOCO_SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.005,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SEED": 5,
}


def settings(slim: list[str], **more: object) -> list[str]:
    return [*slim, *(str(item) for pair in {**SCHEDULE, **more}.items() for item in pair)]


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(root: Path, *command: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-W", "ignore", *command], env=environment(root), text=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-4000:]
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "frozen"), [(1, False), (2, True)])
def test_two_processes_are_one_with_both_batches(
    accumulate: int, frozen: bool, dataset_root: Path, slim: list[str], tmp_path: Path
) -> None:
    """Losses, weights and queue of AMT² after 20 steps: 1 process with 4 images a batch; 2 with 2 each, or in parts."""
    script = str(Path(__file__).with_name("two_processes.py"))
    parts = {"SOLVER.ACCUMULATE": accumulate, "AMT2.MOCO_SOLVER.ACCUMULATE": accumulate}
    treatment = {"AMT2.FREEZE_BACKBONE": frozen, "SOLVER.L2SP.ENABLED": not frozen}
    finish(start(dataset_root, script, "1", str(tmp_path / "one"), *settings(slim, **treatment)))
    finish(start(dataset_root, script, "2", str(tmp_path / "two"), *settings(slim, **parts, **treatment)))
    one, two = (torch.load(tmp_path / name / "end.pth", weights_only=True) for name in ("one", "two"))
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two")]
    assert [len(steps) for steps in losses] == [20, 20]
    for step, other in zip(*losses, strict=True):
        assert other == pytest.approx(step, rel=1e-5, abs=1e-6)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(two["queues"][0], one["queues"][0], rtol=1e-5, atol=1e-5)
    assert torch.equal(*two["queues"])


def children(parent: int) -> list[int]:
    """The training processes that Detectron2's launch started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and b"spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_goes_on(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    command = [TRAIN_NET, "--num-gpus", "2", "--config-file", AMT2, *settings(slim)]
    finish(start(dataset_root, *command, "OUTPUT_DIR", str(tmp_path / "whole")))

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    resume = [*torchrun, TRAIN_NET, *command[3:], "OUTPUT_DIR", str(tmp_path / "killed")]
    process = start(dataset_root, *command, "OUTPUT_DIR", str(tmp_path / "killed"))
    wait_for(tmp_path / "killed/1_amt2/round01_moco_end.pth", process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    last = printed.strip().splitlines()[-1]
    assert "terminated with signal SIGKILL" in last and "The same command goes on from the last checkpoint" in last

    printed = finish(start(dataset_root, *resume))
    assert "round 1/2 moco: from iteration 0" not in printed
    ends = [torch.load(tmp_path / name / "1_amt2/model_final.pth", weights_only=True) for name in ("whole", "killed")]
    for part in ("model", "moco", "l2_sp"):
        for name, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][name]), f"{part} {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number"), [("1", signal.SIGTERM), ("1", signal.SIGUSR1), ("2", signal.SIGTERM)], ids=str
)
def test_a_signal_leaves_a_checkpoint(
    processes: str, number: signal.Signals, dataset_root: Path, slim: list[str], tmp_path: Path
) -> None:
    never = {"SOLVER.CHECKPOINT_PERIOD": 1000, "AMT2.COCO_ITERS": 1000}
    opts = settings(slim, **never, OUTPUT_DIR=tmp_path)
    process = start(dataset_root, TRAIN_NET, "--num-gpus", processes, "--config-file", AMT2, *opts)
    folder = tmp_path / "1_amt2"
    wait_for(folder / "round01_moco_end.pth", process)
    time.sleep(1)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed[-3000:]
    last = (folder / "last_checkpoint").read_text()
    assert last.startswith("model_0")
    iteration = torch.load(folder / last, weights_only=True)["iteration"]
    assert iteration == int(last[len("model_") : -len(".pth")]) >= 5


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_job(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    """As scancel sends it: the loaders' processes get it too, and do not take the run with them."""
    never = {"SOLVER.CHECKPOINT_PERIOD": 1000, "AMT2.COCO_ITERS": 1000, "DATALOADER.NUM_WORKERS": 2}
    opts = settings(slim, **never, OUTPUT_DIR=tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-W", "ignore", TRAIN_NET, "--config-file", AMT2, *opts]
    process = subprocess.Popen(command, env=environment(dataset_root), text=True, start_new_session=True, **pipes)
    wait_for(tmp_path / "1_amt2/round01_moco_end.pth", process)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed[-3000:]
    assert (tmp_path / "1_amt2/last_checkpoint").read_text().startswith("model_0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.IMS_PER_BATCH", "3", "SOLVER.IMS_PER_BATCH 3: expected a positive multiple of the processes (2)"),
        ("SOLVER.ACCUMULATE", "3", "SOLVER.ACCUMULATE 3: expected at most the images a process"),
        ("MODEL.BACKBONE_WEIGHTS", "backbone.pth", "round01_moco_end.pth: cannot be written"),
    ],
)
def test_one_line_for_what_breaks_in_processes(
    key: str, value: str, expected: str, dataset_root: Path, slim: list[str], tmp_path: Path
) -> None:
    opts = settings(slim, OUTPUT_DIR=tmp_path)
    if value == "backbone.pth":
        # A folder where a checkpoint is to be: the first process cannot write it.
        (tmp_path / "1_amt2" / "round01_moco_end.pth").mkdir(parents=True)
    else:
        opts += [key, value]
    process = start(dataset_root, TRAIN_NET, "--num-gpus", "2", "--config-file", AMT2, *opts)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2, printed[-3000:]
    assert any(line.startswith("train_net.py: ") and expected in line for line in printed.splitlines()), printed[-3000:]

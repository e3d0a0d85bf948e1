"""The command users type, run as they type it, on stand-ins a few pixels large."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GRID = ["--arms", "scratch", "coco", "--percents", "50", "--seeds", "0", "--learning-rates", "0.001"]


def reproduce(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    command = [sys.executable, "tools/reproduce.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_plan_run_and_again(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    options = [*GRID, "--jobs", "2", "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "docs" / "table")]
    plan = reproduce(dataset_root, "--plan", *options, "--", *slim)
    assert plan.returncode == 0, plan.stderr
    *lines, total = plan.stdout.splitlines()
    assert total == "5 of 5 to run, time unknown: nothing like them is measured yet"
    assert lines[1].startswith("coco_pretrain-") and ": arm coco, 2 iterations, time unknown" in lines[1]
    assert ": arm coco, percent 50, seed 0, learning rate 0.001, 2 iterations" in lines[2]
    assert not (tmp_path / "runs").exists()

    done = reproduce(dataset_root, *options, "--", *slim)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "docs/table.json").read_text())
    header, *lines = (tmp_path / "docs/table.csv").read_text().splitlines()
    assert header == "arm,percent,seed,learning_rate,dataset,task,metric,value"
    assert any(line.startswith("coco,50,0,0.001,bbbc038_test,segm,AP,") for line in lines)
    assert [run["arm"] for run in content["runs"]] == ["scratch", "coco"]
    assert all({"bbox", "segm"} <= set(run["test"]) for run in content["runs"])
    assert "tools/reproduce.py --arms scratch coco" in content["command"]
    page = (tmp_path / "docs/table.md").read_text()
    assert "| coco " in page and "less coco" in page
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert shown == ["table.png", "table_epochs.png", "table_arms.jpg"]
    assert all((tmp_path / "docs" / name).is_file() for name in shown)
    assert all(run["validation_curve"][-1]["epochs"] > 0 for run in content["runs"])
    report = (tmp_path / "docs/table_report.html").read_text()
    links = re.findall(r'href="([^"#]+)"', report)
    assert len(links) == 2 and all((tmp_path / "docs" / link).is_file() for link in links)
    seconds = [json.loads(file.read_text())["seconds"] for file in (tmp_path / "runs").glob("stages/**/timing.json")]
    assert len(seconds) == 5 and min(seconds) > 1

    logs = {log: log.read_text() for log in (tmp_path / "runs").glob("stages/*/*t.txt")}
    assert len(logs) == 5
    plan = reproduce(dataset_root, "--plan", *options, "--", *slim)
    assert plan.stdout.splitlines()[-1] == "0 of 5 to run"
    again = reproduce(dataset_root, *options, "--", *slim)
    assert again.returncode == 0 and "started" not in again.stdout
    assert logs == {log: log.read_text() for log in logs}

    record = next((tmp_path / "runs").glob("stages/finetune*/1_*/stage.json"))
    record.write_text("{")
    broken = reproduce(dataset_root, "--plan", *options, "--", *slim)
    assert broken.returncode == 2 and "Traceback" not in broken.stderr
    assert f"reproduce.py: {record}: broken" in broken.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--arms", "cupe"], "did you mean cupre"),
        (["--dataset", "nuclei"], "PIPELINE.TARGET 'nuclei': no such target"),
        (["--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["--", "SOLVER.LEARNING_RATE", "1"], "SOLVER.LEARNING_RATE"),
        (["--table", "neural_gas", "--arms", "coco"], "--arms: not of this table; expected --algorithms"),
    ],
)
def test_refused_in_one_line(arguments: list[str], expected: str, dataset_root: Path, tmp_path: Path) -> None:
    run = reproduce(dataset_root, "--plan", "--output", str(tmp_path), *arguments)
    assert run.returncode == 2, run.stdout + run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("reproduce.py: ")]
    assert expected in line and "Traceback" not in run.stderr


@pytest.mark.slow
def test_table_of_deep_clustering(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    grid = ["--table", "neural_gas", "--algorithms", "neural_gas", "--clusters", "3", "6", "--seeds", "0"]
    options = [*grid, "--jobs", "2", "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "docs" / "table")]
    plan = reproduce(dataset_root, "--plan", *options, "--", *slim)
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.splitlines()[-1].startswith("3 of 3 to run")

    done = reproduce(dataset_root, *options, "--", *slim)
    assert done.returncode == 0, done.stdout + done.stderr
    header, *lines = (tmp_path / "docs/table.csv").read_text().splitlines()
    assert header == "algorithm,clusters,seed,dataset,task,metric,value"
    assert lines[0].startswith("baseline,,,bbbc038_known_test,")
    assert any(line.startswith("neural_gas,3,0,all,labels,MAP,") for line in lines)
    runs = json.loads((tmp_path / "docs/table.json").read_text())["runs"]
    assert [(run["algorithm"], run.get("clusters")) for run in runs] == [
        ("baseline", None),
        ("neural_gas", 3),
        ("neural_gas", 6),
    ]
    assert all(set(run["MAP"]) == {"known", "unknown", "all"} for run in runs)
    page = (tmp_path / "docs/table.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert shown == ["table.png", "table_entropy.png", "table_latents.png", "table_pictures.jpg"]
    assert all((tmp_path / "docs" / name).is_file() for name in shown)
    report = (tmp_path / "docs/table_report.html").read_text()
    assert "data:image/png;base64," in report
    links = re.findall(r'href="([^"#]+)"', report)
    assert len(links) == 3 and all((tmp_path / "docs" / link).is_file() for link in links)

"""Real processes, real torchrun, gloo: several ranks must be one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dataset_copies import picture
from family import FAMILY, OF_IMAGES
from pairs import CASES
from safetensors.torch import load_file

from riftcli import catalog

WORKER = Path(__file__).parent / "distributed_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def clean_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    results = {}
    for ranks in (1, 2, 3):
        out = folder / f"{ranks}.safetensors"
        start = [sys.executable] if ranks == 1 else [*TORCHRUN, "--nproc-per-node", str(ranks)]
        subprocess.run([*start, str(WORKER), str(out)], check=True, env=clean_environment(), timeout=300)
        results[ranks] = load_file(out)
    return results


@pytest.mark.parametrize("name", ["none", "rift", "rsc"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_ranks_give_the_gradients_of_one_for_the_network_and_for_q(found, name, micro_batches):
    one, two = found[1], found[2]
    keys = [key for key in one if key.startswith(f"{name}/{micro_batches}/")]
    assert len(keys) > 20
    assert (f"{name}/{micro_batches}/Q" in keys) == (name == "rift")
    for key in keys:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_every_member_of_the_family_on_two_ranks(found, name, micro_batches):
    """The network, Q, running means and gradient norms; the second stream too."""
    keys = [key for key in found[1] if key.startswith(f"family/{name}/{micro_batches}/")]
    assert len(keys) > 20
    for key in keys:
        torch.testing.assert_close(found[2][key], found[1][key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_pairs_of_images_and_texts_on_two_ranks(found, name, micro_batches):
    """Both towers and the scale, to 1e-5 of the largest gradient: every pair meets those of the other rank."""
    keys = [key for key in found[1] if key.startswith(f"pairs/{name}/{micro_batches}/")]
    assert len(keys) > 30
    for key in keys:
        bound = 1e-5 * max(1.0, float(found[1][key].abs().max()))
        torch.testing.assert_close(found[2][key], found[1][key], rtol=1e-5, atol=bound, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("regularizer", OF_IMAGES)
@pytest.mark.parametrize("adapter", catalog.names("adapter"))
def test_every_adapter_with_every_regularizer_on_two_ranks(found, adapter, regularizer):
    one, two = found[1], found[2]
    keys = [key for key in one if key.startswith(f"product/{adapter}/{regularizer}/")]
    assert bool(keys) == (adapter != "linear" or regularizer == "none")
    for key in keys:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_the_comparison_notices_a_missing_factor_of_the_world_size(found):
    wrong = max(
        float((found[2][f"mutant/{key}"] - found[1][key]).abs().max()) for key in found[1] if key.startswith("rift/1/vit.blocks")
    )
    assert wrong > 1e-3


@pytest.mark.parametrize("ranks", [2, 3])
def test_evaluation_of_21_samples_is_the_same_on_any_number_of_ranks(found, ranks):
    assert found[ranks]["logits"].shape == (21, 10)
    for key in ("logits", "features", "acc", "f1", "cka"):
        assert torch.equal(found[ranks][key], found[1][key]), key


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_of_a_machine_see_the_images_that_each_has_decoded(found, ranks):
    expected = torch.arange(10, 10 + ranks).view(1, ranks, 1, 1, 1).expand(ranks, ranks, 5, 4, 3)
    assert torch.equal(found[ranks]["kept_images"], expected.to(torch.uint8))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_of_images_in_memory_that_ranks_and_data_workers_share(found, ranks):
    assert found[ranks]["batches_of_files"].tolist() == [[1, 24]] * ranks, "the same bits; none is missing on any rank"


def run(arguments: list, cwd: Path, timeout: int = 240) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(a) for a in arguments], cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=timeout
    )


def steps(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["kind"] == "step"]


def test_a_run_on_two_processes_is_the_run_on_one(tiny_recipe, write_recipe, tmp_path):
    """Our own launcher and plain torchrun, against one process: same batches, same losses, same files."""
    tiny_recipe["retention"] = [
        {"format": "demo_fashion", "test": {"from": "test", "limit": 30}, "train": {"from": "test", "limit": 30}}
    ]
    recipe = write_recipe(tiny_recipe)
    arguments = ["finetune", "--recipe", recipe, "--device", "cpu", "--out"]
    commands = {
        "one": [sys.executable, "-m", "riftcli", *arguments, "one"],
        "ours": [sys.executable, "-m", "riftcli", *arguments, "ours", "--nproc-per-node", 2],
        "torchrun": [*TORCHRUN, "--nproc-per-node", 2, "-m", "riftcli", *arguments, "torchrun"],
    }
    for name, command in commands.items():
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stderr
        if name != "one":
            assert "batch: 32 = 2 ranks x 16 x 1" in done.stderr
            assert done.stderr.count("accuracy: ") == 1, "one rank prints"
    one = steps(tmp_path / "one")
    for name in ("ours", "torchrun"):
        two = steps(tmp_path / name)
        assert [row["step"] for row in two] == [row["step"] for row in one]
        for key in ("task_loss", "penalty_loss", "grad_norm"):
            assert two[0][key] == pytest.approx(one[0][key], rel=1e-4)
            assert two[-1][key] == pytest.approx(one[-1][key], rel=0.02)
        reports = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", name)]
        assert reports[0]["data"] == reports[1]["data"]
        assert reports[1]["env"]["world_size"] == 2
        assert abs(reports[0]["metrics"]["cka"]["value"] - reports[1]["metrics"]["cka"]["value"]) < 1e-3
        assert (tmp_path / name / "logs" / "rank1.log").is_file()
    status = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert "--nproc-per-node" in status["command"], "the command of the user, not of the worker"
    assert (tmp_path / "ours" / "recipe.yaml").read_text() == recipe.read_text()


def test_two_ranks_share_one_store_of_images_and_skip_the_same(tiny_recipe, write_recipe, tmp_path):
    """Balanced sampling, an unreadable image left out, every image decoded once: the run on two ranks is the run on one."""
    for split, count in (("train", 20), ("test", 6)):
        for k, label in enumerate(("a", "b", "c")):
            for i in range(max(4, count - 4 * k)):
                picture(tmp_path / "data" / split / label / f"{i}.png", 1000 * (split == "test") + 100 * k + i)
    (tmp_path / "data/train/b/3.png").write_bytes(b"broken")
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "data")}
    tiny_recipe["augment"] = {"flip": 0.5, "crop_min_area": 0.5}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8, "sampler": "balanced"}
    tiny_recipe["input"] = {"on_bad_image": "skip", "max_bad": 0.1}
    recipe = write_recipe(tiny_recipe)
    for name, ranks in (("one", 1), ("two", 2)):
        command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", recipe, "--device", "cpu", "--out", name]
        command += ["--set", f"input.cache={name}-store", "--nproc-per-node", ranks]
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning: split 'train': 1 unreadable images are left out: train/b/3.png" in done.stderr
        assert len(list((tmp_path / f"{name}-store").glob("*/*.bin"))) == 2, "one pack for training, one for the test images"
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(one) == len(two) == 5
    for key in ("task_loss", "penalty_loss", "grad_norm"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-4)
        assert two[-1][key] == pytest.approx(one[-1][key], rel=0.02)
    reports = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert reports[0]["training_data"] == reports[1]["training_data"]
    assert reports[0]["data"] == reports[1]["data"]


def test_resume_on_two_processes_is_bitwise(tiny_recipe, write_recipe, tmp_path):
    tiny_recipe["model"]["drop_path"] = 0.3
    recipe = write_recipe(tiny_recipe)
    start = [sys.executable, "-m", "riftcli", "finetune", "--nproc-per-node", 2, "--device", "cpu"]
    assert run([*start, "--recipe", recipe, "--out", "whole"], tmp_path).returncode == 0
    # the state after epoch 1 of a finished run is the state of one that was killed then
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/last/step-00000008")
    status = json.loads((tmp_path / "cut/run.json").read_text())
    (tmp_path / "cut/run.json").write_text(json.dumps({**status, "status": "running"}))
    refused = run([sys.executable, "-m", "riftcli", "finetune", "--resume", "cut", "--device", "cpu"], tmp_path)
    assert refused.returncode == 2
    assert "error: --resume: the run was made with 2 processes and this is 1; use --nproc-per-node 2" in refused.stderr
    done = run([*start, "--resume", "cut"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 4 of 8" in done.stderr
    for name in ("model", "optimizer", "penalty", "random"):
        a, b = (load_file(tmp_path / r / f"last/step-00000008/{name}.safetensors") for r in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_a_failing_rank_is_the_one_line_that_is_shown(tiny_recipe, write_recipe, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "pics" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), (i * 10,) * 3).save(folder / f"{i}.png")
    bad = tmp_path / "pics/train/b/7.png"
    bad.write_bytes(b"oops")
    tiny_recipe |= {"data": {"format": "image_folder", "root": str(tmp_path / "pics")}}
    tiny_recipe["eval"]["batch_size"] = 4
    tiny_recipe["train"]["batch_size"] = 8
    command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r"]
    done = run([*command, "--nproc-per-node", 2, "--device", "cpu"], tmp_path)
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"error: rank 1: {bad}: unreadable image (cannot identify image file '{bad}')")
    log = Path(errors[0].rpartition("(log: ")[2].removesuffix(")"))
    assert "Traceback" in log.read_text()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["kill rank 1", "terminate the launcher"])
def test_when_one_dies_all_are_gone(tiny_recipe, write_recipe, tmp_path, how):
    tiny_recipe["train"] |= {"epochs": 2000, "workers": 2}  # data workers must not die before the rank has saved
    tiny_recipe["train"]["save_every_steps"] = 1000
    command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r"]
    process = subprocess.Popen(
        [str(a) for a in [*command, "--nproc-per-node", 2, "--device", "cpu"]],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "r/metrics.jsonl"
    deadline = time.time() + 180
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 6):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.2)
    children = [
        int(pid)
        for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if b"riftcli" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(children) == 2
    began = time.time()
    if how == "kill rank 1":
        victim = next(p for p in children if b"RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes().replace(b"LOCAL_RANK", b""))
        os.kill(victim, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert time.time() - began < 45
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if how == "kill rank 1":
        assert process.returncode == 1
        assert errors == ["error: rank 1: killed by signal 9 (log: r/logs/rank1.log)"], err
    else:
        assert process.returncode == 143, err
        assert errors == ["error: stopped by SIGTERM; go on with --resume r"], err
        last = max(int(line.split('"step": ')[1].split(",")[0]) for line in metrics.read_text().splitlines())
        assert (tmp_path / f"r/last/step-{last:08d}").is_dir(), "the very last step was saved"
        assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "interrupted"
    for pid in children:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]

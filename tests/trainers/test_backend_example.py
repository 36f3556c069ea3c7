"""docs/backends.md: the example is a package of its own that installs, is found, trains, and agrees with TRL."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import invalidate_caches
from pathlib import Path

import pytest
from tests.trainers.conftest import sft_recipe, talks
from tests.trainers.oracles import metrics, weights

from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.types import Checkpoint
from rlhf_bench.trainers.backends import GROUP, get_backend

DOCS = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
NAME, VERSION = "tiny_backend", "1.0"


def example() -> str:
    text = DOCS.read_text(encoding="utf-8").partition("<!-- example -->\n```python\n")[2]
    return text.partition("```")[0]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the example, installed by pip where Python finds it."""
    wheel = tmp_path / f"{NAME}-{VERSION}-py3-none-any.whl"
    info = f"{NAME}-{VERSION}.dist-info"
    files = {
        f"{NAME}.py": example(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{GROUP}]\ntiny = {NAME}\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    invalidate_caches()


def test_the_example_is_forty_lines() -> None:
    assert 30 < len([line for line in example().splitlines() if line.strip()]) <= 42


@pytest.mark.usefixtures("installed")
def test_the_example_installs_as_a_package_of_its_own_and_agrees_with_trl(tiny: Checkpoint, tmp_path: Path) -> None:
    recipe = sft_recipe(schedule="constant_with_warmup", epochs=2)
    ours, theirs = (
        get_backend(name).train_sft(recipe, talks(7), tiny, tmp_path / f"by-{name}") for name in ("tiny", "trl")
    )
    assert ours.recipe["backend"] == "tiny" and ours.recipe["conversations"] == 7
    for step, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert step["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert (step["step"], step["epoch"], step["lr"]) == (other["step"], other["epoch"], other["lr"])
    for name, weight in weights(ours).items():
        assert (weights(theirs)[name] - weight).abs().max() < 1e-4, name


@pytest.mark.usefixtures("installed")
def test_the_example_refuses_what_it_does_not_have(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny has no lora, .* use --backend trl"):
        get_backend("tiny").train_sft(sft_recipe(packing=True), talks(2), tiny, tmp_path / "out")

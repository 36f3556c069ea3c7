import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness import models
from rlhf_bench.harness.engines import choice
from rlhf_bench.harness.engines.choice import DTYPES, Choice, Serving, parse
from rlhf_bench.harness.engines.vllm import cards
from rlhf_bench.harness.errors import UserError
from rlhf_bench.harness.models import engine_here


@settings(deadline=None)
@given(
    st.builds(
        Choice,
        name=st.just("vllm"),
        dtype=st.sampled_from(("", *DTYPES)),
        serving=st.builds(
            Serving,
            tensor=st.integers(1, 8),
            data=st.integers(1, 8),
            memory=st.floats(0.01, 1),
            context=st.none() | st.integers(2, 1 << 20),
            eager=st.none() | st.booleans(),
        ),
    )
)
def test_a_choice_reads_back_as_it_is_written(made: Choice) -> None:
    assert parse(str(made)) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vlm", "Did you mean 'vllm'?"),
        ("vllm:tensor=0", "engine 'vllm:tensor=0': key 'tensor' is \"0\""),
        ("vllm:tensr=2", "Did you mean 'tensor'?"),
        ("vllm:memory=1.5", "key 'memory'"),
        ("vllm:float8", "'float8' is no setting"),
        ("vllm:tensor=1,tensor=2", "'tensor=2' is no setting"),
        ("hf:float32,bfloat16", "'bfloat16' is no setting"),
        ("hf:tensor=2", "tensor is vLLM's to set"),
        ("", "no engine named ''"),
    ],
)
def test_what_is_no_engine_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("installed", "gpu", "device", "wanted"),
    [("", True, "auto", "hf"), ("0.32.0", False, "auto", "hf"), ("0.32.0", True, "auto", "vllm:tensor=2"),
     ("0.32.0", True, "cpu", "hf"), ("0.32.0+cpu", True, "auto", "hf")],
)  # fmt: skip
def test_auto_is_vllm_only_where_it_is_installed_and_a_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, installed: str, gpu: bool, device: str, wanted: str
) -> None:
    monkeypatch.setattr(choice, "vllm_version", lambda: installed)
    monkeypatch.setattr(choice, "_gpu", lambda: gpu)
    assert engine_here("auto:tensor=2", device) == wanted
    assert engine_here("hf:bfloat16", device) == "hf:bfloat16"


def test_vllm_that_is_not_installed_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "vllm_version", lambda: "")
    with pytest.raises(UserError, match=r"pip install 'rlhf-bench\[vllm\]'"):
        models.engine_here("vllm")


@settings(deadline=None)
@given(tensor=st.integers(1, 4), data=st.integers(1, 4), first=st.integers(0, 2))
def test_every_copy_of_the_model_has_gpus_of_its_own(tensor: int, data: int, first: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{n}" for n in range(first + tensor * data)))
        found = cards(f"cuda:{first}", Serving(tensor=tensor, data=data))
        assert [len(each) for each in found] == [tensor] * data
        used = [card for each in found for card in each]
        assert used == [f"GPU-{n}" for n in range(first, first + tensor * data)]
        with pytest.raises(UserError, match=f"uses {tensor * (data + 1)} GPUs"):
            cards(f"cuda:{first}", Serving(tensor=tensor, data=data + 1))

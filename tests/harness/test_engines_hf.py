"""The hf engine against plain transformers and lm-eval's own hf model."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.checkpoint import checkpoint_digest
from rlhf_bench.harness.engines.forward import Model
from rlhf_bench.harness.engines.hf import HFEngine
from rlhf_bench.harness.engines.jobs import NO_NUMBER
from rlhf_bench.harness.errors import Fault, UserError
from rlhf_bench.harness.types import Checkpoint, Completion, Message, Prompt, Request, Sampling

ALONE = {"batch_tokens": 1}
TOPICS = ["the sea", "a dog", "France", "a red car and its very old driver", "rain", "twelve", "bread", "ships"]
CHOICES = [
    ("Question: Which gas do plants absorb?\nAnswer:", " carbon dioxide"),
    ("Question: Which gas do plants absorb?\nAnswer:", " oxygen"),
    ("Question: Which gas do plants absorb?\nAnswer:", " helium, mostly at night"),
    ("The capital of France is ", "Paris"),
    ("The capital of France is", " the city"),
    ("", "Hello there"),
    ("<|im_start|>user\nHi<|im_end|>\n", "yes"),
]


@functools.cache
def engine(path: Path, **options: Any) -> HFEngine:
    return HFEngine(Checkpoint(str(path), checkpoint_digest(path)), name="test", dtype="float32", **options)


def ask(engine: HFEngine, requests: Sequence[Request]) -> list[Completion]:
    """The completions in the order of the requests."""
    by_place = {(answer.sample_id, answer.index): answer for answer in engine.generate(requests)}
    assert len(by_place) == len(requests)
    return [by_place[request.sample_id, request.index] for request in requests]


def plain(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def chats(count: int, **sampling: Any) -> list[Request]:
    return [
        Request(f"s{i}", (Message("user", f"Say {i} words about {TOPICS[i % 8]}."),), Sampling(**sampling))
        for i in range(count)
    ]


def continuations(pairs: Sequence[tuple[Prompt, str]]) -> list[Request]:
    return [Request("s", context, continuation=text, index=i) for i, (context, text) in enumerate(pairs)]


def test_alone_or_in_a_batch_of_32_the_greedy_text_is_the_same(smollm2: Path) -> None:
    requests = chats(32, max_tokens=10)
    together = ask(engine(smollm2), requests)
    assert [one.text for one in together[:4]] == [ask(engine(smollm2), [request])[0].text for request in requests[:4]]


def test_greedy_text_is_that_of_transformers_alone(smollm2: Path) -> None:
    model, tokenizer = plain(smollm2)
    requests = chats(3, max_tokens=12)
    expected = []
    for request in requests:
        turns = [{"role": turn.role, "content": turn.content} for turn in request.prompt]  # type: ignore[union-attr]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        expected.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert [one.text for one in ask(engine(smollm2), requests)] == expected


def test_log_likelihoods_are_those_of_lm_eval(smollm2: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = plain(smollm2)
    reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in CHOICES]
    expected = reference.loglikelihood(instances, disable_tqdm=True)
    answers = ask(engine(smollm2), continuations(CHOICES))
    assert [one.logprob for one in answers] == pytest.approx([logprob for logprob, _ in expected], abs=1e-3)
    assert [one.greedy for one in answers] == [greedy for _, greedy in expected]


def test_log_likelihoods_do_not_depend_on_what_is_asked_beside_them(smollm2: Path) -> None:
    requests = continuations(CHOICES * 5)[:32]
    together = [one.logprob for one in ask(engine(smollm2), requests)]
    alone = [ask(engine(smollm2), [request])[0].logprob for request in requests[: len(CHOICES)]]
    assert together[: len(CHOICES)] == pytest.approx(alone, abs=1e-3)


def test_what_requests_share_is_computed_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, computed, read = Model.__call__, [], []

    def count(model: Model, tokens_BQ: torch.Tensor, *rest: Any) -> torch.Tensor:
        computed.append(tokens_BQ.numel())
        read.append(rest[-1].numel())
        return whole(model, tokens_BQ, *rest)

    assert engine(tiny_checkpoint)._model.context == 512
    monkeypatch.setattr(Model, "__call__", count)
    header = "Question: Which gas do plants absorb?\nAnswer: carbon dioxide\n" * 5
    requests = continuations([(f"{header}Question: {q}\nAnswer:", f" {c}") for q in "abc" for c in "0123"])
    answers = ask(engine(tiny_checkpoint), requests)
    tokenizer = plain(tiny_checkpoint)[1]
    prompts = [tokenizer(str(request.prompt) + str(request.continuation)).input_ids[:-1] for request in requests]
    assert sum(computed) == len({tuple(prompt[: n + 1]) for prompt in prompts for n in range(len(prompt))})
    assert sum(read) <= sum(answer.tokens for answer in answers)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_log_likelihoods_equal_a_plain_forward_pass(tiny_checkpoint: Path, data: st.DataObject) -> None:
    """For any tree of token prefixes, cut into stretches anywhere."""
    from rlhf_bench.harness.engines.jobs import Job
    from rlhf_bench.harness.engines.score import score

    model, module = tiny(tiny_checkpoint)
    token = st.integers(0, 9)
    stems = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3))
    tails = data.draw(st.lists(st.lists(token, min_size=2, max_size=8), min_size=1, max_size=6))
    jobs = []
    for number, tail in enumerate(tails):
        whole = stems[number % len(stems)] + tail
        first = data.draw(st.integers(0, len(whole) - 2))
        jobs.append(Job(Request("s", "", continuation="", index=number), whole[:-1], first, whole[first + 1 :]))
    stretch_tokens = data.draw(st.integers(1, 20))
    answers = {one.index: one for _, one in score(model, jobs, stretch_tokens=stretch_tokens)}
    for number, job in enumerate(jobs):
        with torch.no_grad():
            logprobs = module(torch.tensor([job.tokens])).logits[0].log_softmax(-1)[job.first :]
        targets = torch.tensor(job.targets)
        assert answers[number].logprob == pytest.approx(float(logprobs.gather(1, targets[:, None]).sum()), abs=1e-3)
        assert answers[number].greedy == bool((logprobs.argmax(-1) == targets).all())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_generated_tokens_equal_those_of_a_plain_forward_pass(tiny_checkpoint: Path, data: st.DataObject) -> None:
    """For prompts of any families, in batches of any size, cut into stretches anywhere."""
    from rlhf_bench.harness.engines import decode
    from rlhf_bench.harness.engines.jobs import Job

    model, module = tiny(tiny_checkpoint)
    coder = engine(tiny_checkpoint)._coder
    token = st.integers(3, 20)
    stems = data.draw(st.lists(st.lists(token, min_size=decode.FAMILY, max_size=70), min_size=1, max_size=2))
    tails = data.draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=7))
    prompts = [
        (stems[number % 2] if number % 3 and number % 2 < len(stems) else []) + t for number, t in enumerate(tails)
    ]
    jobs = [
        Job(Request("s", "", Sampling(max_tokens=1 + number % 5), index=number), prompt, len(prompt) - 1, [])
        for number, prompt in enumerate(prompts)
    ]
    sizes = {"batch_tokens": data.draw(st.integers(1, 300)), "stretch_tokens": data.draw(st.integers(1, 90))}
    answers = {answer.index: answer.text for _, answer in decode.generate(model, coder, jobs, **sizes)}
    for number, prompt in enumerate(prompts):
        tokens = list(prompt)
        for _ in range(1 + number % 5):
            with torch.no_grad():
                tokens.append(int(module(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answers[number] == coder.text(tokens[len(prompt) :])


@functools.cache
def tiny(path: Path) -> tuple[Model, Any]:
    return Model(path, torch.float32, "cpu"), plain(path)[0]


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}])
def test_a_sampled_answer_is_the_same_alone_and_in_a_batch(tiny_checkpoint: Path, sampling: dict[str, float]) -> None:
    requests = chats(16, max_tokens=20, seed=3, **sampling)
    together = [one.text for one in ask(engine(tiny_checkpoint), requests)]
    assert together == [one.text for one in ask(engine(tiny_checkpoint, **ALONE), requests)]
    assert len(set(together)) == 16


def test_another_seed_or_index_is_another_answer(tiny_checkpoint: Path) -> None:
    prompt = (Message("user", "Tell me something."),)
    requests = [
        Request(f"s{index // 4}", prompt, Sampling(max_tokens=20, temperature=1.0, seed=seed), index=index)
        for seed in (0, 1)
        for index in range(8)
    ]
    answers = [one.text for seed in (0, 8) for one in ask(engine(tiny_checkpoint), requests[seed : seed + 8])]
    assert len(set(answers)) == 16


def test_a_small_top_p_leaves_only_the_likeliest_token(tiny_checkpoint: Path) -> None:
    greedy = ask(engine(tiny_checkpoint), chats(4, max_tokens=8))
    drawn = ask(engine(tiny_checkpoint), chats(4, max_tokens=8, temperature=1.0, top_p=1e-6))
    assert [one.text for one in drawn] == [one.text for one in greedy]


def test_answers_do_not_depend_on_the_room_for_them(tiny_checkpoint: Path) -> None:
    """A small batch admits prompts as others finish; a short stretch cuts prompts anywhere."""
    requests = [
        Request(f"s{i}", f"{'word ' * (i % 7)}{i}", Sampling(max_tokens=1 + 5 * (i % 4), temperature=0.7, seed=i))
        for i in range(24)
    ]
    expected = ask(engine(tiny_checkpoint), requests)
    for batch_tokens in (64, 200):
        assert ask(engine(tiny_checkpoint, batch_tokens=batch_tokens), requests) == expected


def test_a_start_that_all_prompts_share_is_kept_once_and_changes_no_answer(tiny_checkpoint: Path) -> None:
    """Beside prompts that share nothing, greedy and sampled, in batches of any size."""
    header = "Question: Which gas do plants absorb?\nAnswer: carbon dioxide\n" * 4
    prompts = [header, *(f"{header}{'word ' * (i % 5)}{i}" for i in range(12)), "The sea", "Paris is wide"]
    requests = [
        Request(f"s{i}", prompt, Sampling(max_tokens=2 + 6 * (i % 3), temperature=0.7 * (i % 2), seed=i))
        for i, prompt in enumerate(prompts)
    ]
    alone = [ask(engine(tiny_checkpoint), [request])[0] for request in requests]
    assert engine(tiny_checkpoint)._model.shares
    for batch_tokens in (None, 40, 150):
        assert ask(engine(tiny_checkpoint, batch_tokens=batch_tokens), requests) == alone


def test_an_output_that_is_no_number_is_an_error_and_the_others_go_on(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Model.__call__
    assert engine(tiny_checkpoint)._model.context == 512

    def overflow(model: Model, tokens_BQ: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = whole(model, tokens_BQ, *rest).clone()
        logits[:1, :1] = float("nan")
        return logits

    requests = [Request(f"s{i}", f"word {i}", Sampling(max_tokens=4)) for i in range(4)]
    scored = continuations([("a", " b"), ("word", " c")])
    expected = [ask(engine(tiny_checkpoint), [each])[0] for each in [*requests, *scored]]
    monkeypatch.setattr(Model, "__call__", overflow)
    found = ask(engine(tiny_checkpoint), [*requests, *scored])
    assert {each.why for each in found if each.finish_reason == "error"} == {NO_NUMBER}
    assert 0 < sum(each.finish_reason == "error" for each in found) < len(found)
    assert all(
        each == one or each.logprob == pytest.approx(one.logprob, abs=1e-3)
        for each, one in zip(found, expected, strict=True)
        if each.finish_reason != "error"
    )


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(tiny_checkpoint: Path) -> None:
    (whole,) = ask(engine(tiny_checkpoint), chats(1, max_tokens=24))
    assert whole.finish_reason == "length"
    stop = whole.text[9:12]
    (cut,) = ask(engine(tiny_checkpoint), chats(1, max_tokens=24, stop=("\0", stop)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.tokens < whole.tokens == 24


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(tiny_checkpoint: Path) -> None:
    model, tokenizer = plain(tiny_checkpoint)
    (whole,) = ask(engine(tiny_checkpoint), [Request("s", "The sea", Sampling(max_tokens=8))])
    ids = tokenizer("The sea", return_tensors="pt").input_ids
    generated = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    other = HFEngine(Checkpoint(str(tiny_checkpoint), "d"), name="test", dtype="float32")
    other._model.end_ids = frozenset({generated[4]})
    (cut,) = ask(other, [Request("s", "The sea", Sampling(max_tokens=8))])
    kept = generated[: generated.index(generated[4])]
    assert (cut.text, cut.finish_reason, cut.tokens) == (
        tokenizer.decode(kept, skip_special_tokens=True),
        "stop",
        len(kept),
    )
    assert whole.text.startswith(cut.text)


def test_a_prompt_that_does_not_fit_is_an_error_and_the_others_go_on(tiny_checkpoint: Path) -> None:
    long, short = "word " * 600, "word"
    requests = [
        Request("long", long),
        Request("scored", long, continuation=" yes"),
        Request("short", short, Sampling(max_tokens=3)),
    ]
    first, second, third = ask(engine(tiny_checkpoint), requests)
    assert (first.finish_reason, second.finish_reason, third.finish_reason) == ("error", "error", "length")
    assert "context 512" in first.why
    assert second.logprob is None


def test_an_answer_ends_where_the_context_does(tiny_checkpoint: Path) -> None:
    tokenizer = plain(tiny_checkpoint)[1]
    prompt = tokenizer.decode(tokenizer("word " * 600).input_ids[:500])
    length = len(tokenizer(prompt).input_ids)
    (answer,) = ask(engine(tiny_checkpoint), [Request("s", prompt, Sampling(max_tokens=100))])
    assert (answer.finish_reason, answer.tokens) == ("length", 512 - length)


def test_an_empty_continuation_is_an_error(tiny_checkpoint: Path) -> None:
    (answer,) = ask(engine(tiny_checkpoint), [Request("s", "Q", continuation="")])
    assert answer.finish_reason == "error"


def test_a_conversation_is_scored_after_its_rendered_prompt(tiny_checkpoint: Path) -> None:
    chat: Prompt = (Message("user", "2 + 2?"),)
    text = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    first, second = ask(engine(tiny_checkpoint), continuations([(chat, "4"), (text, "4")]))
    assert first.logprob == pytest.approx(second.logprob, abs=1e-5)
    assert first.tokens == second.tokens == 2  # the line break before it is scored with it


def test_a_begun_answer_is_continued(tiny_checkpoint: Path) -> None:
    begun = (Message("user", "2 + 2?"), Message("assistant", "Sure, the"))
    text = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nSure, the"
    sampling = Sampling(max_tokens=6)
    first, second = ask(engine(tiny_checkpoint), [Request("a", begun, sampling), Request("b", text, sampling)])
    assert first.text == second.text != ""


def test_out_of_memory_halves_the_batch_and_changes_no_answer(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = chats(12, max_tokens=6, temperature=1.0) + continuations([("a", "b"), ("a", "c")])
    expected = ask(engine(tiny_checkpoint), requests)
    small = HFEngine(Checkpoint(str(tiny_checkpoint), "d"), name="test", dtype="float32")
    whole = type(small._model).__call__

    def crowded(model: Model, tokens_BQ: torch.Tensor, *rest: Any) -> torch.Tensor:
        if tokens_BQ.numel() > 100:
            raise torch.OutOfMemoryError("too much")
        return whole(model, tokens_BQ, *rest)

    monkeypatch.setattr(Model, "__call__", crowded)
    assert ask(small, requests) == expected
    assert small._batch_tokens < engine(tiny_checkpoint)._batch_tokens
    monkeypatch.setattr(Model, "__call__", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(Fault, match="does not fit the memory"):
        ask(small, requests)


def test_the_identity_is_the_weights_and_the_dtype(tiny_checkpoint: Path) -> None:
    def identity(digest: str, **options: Any) -> str:
        return HFEngine(Checkpoint(str(tiny_checkpoint), digest), name="n", **options).identity

    assert identity("a") == identity("a", batch_tokens=7)
    assert len({identity("a"), identity("b"), identity("a", dtype="bfloat16")}) == 3


def test_the_manifest_says_what_answered(tiny_checkpoint: Path) -> None:
    manifest = engine(tiny_checkpoint).manifest
    assert manifest["dtype"] == "float32"
    assert manifest["checkpoint"] == checkpoint_digest(tiny_checkpoint)
    assert {"engine", "device", "torch", "transformers", "chat_template"} <= manifest.keys()


def test_no_chat_template_is_a_user_error_for_a_conversation(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        ask(engine(base), chats(1))
    assert ask(engine(base), [Request("s", "text", Sampling(max_tokens=2))])[0].tokens == 2


def test_a_conversation_that_the_template_refuses_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    strict = Path(shutil.copytree(tiny_checkpoint, tmp_path / "strict"))
    (strict / "chat_template.jinja").write_text("{{ raise_exception('no system turns') }}")
    (answer,) = ask(engine(strict), chats(1))
    assert answer.finish_reason == "error"
    assert "no system turns" in answer.why


def configs() -> dict[str, Any]:
    from transformers import Gemma3TextConfig, GPT2Config, MistralConfig, Qwen2Config

    small = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    layers = ["sliding_attention", "full_attention"]
    return {
        "gpt2": GPT2Config(
            vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **ends
        ),
        "mistral": MistralConfig(**small, sliding_window=5),
        "gemma3": Gemma3TextConfig(**small, head_dim=8, sliding_window=5, layer_types=layers),
        "qwen2": Qwen2Config(**small, use_sliding_window=False),
    }


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "gemma3", "qwen2"])
def test_other_architectures_agree_with_transformers(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Learned positions, a sliding window in all layers or in some, and none of either."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(configs()[kind], dtype=torch.float32).eval()
    path = tmp_path / kind
    shutil.copytree(tiny_checkpoint, path, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    shutil.copy(tiny_checkpoint / "tokenizer_config.json", path)
    module.save_pretrained(path)
    _, tokenizer = plain(path)
    texts = ["The capital of France is Paris, and", "The capital of Japan is", "The sea"]
    pairs = [(text, continuation) for text in texts for continuation in (" Tokyo.", " wide")]
    answers = ask(engine(path), continuations(pairs))
    generated = ask(engine(path), [Request(text, text, Sampling(max_tokens=12)) for text in texts])
    for answer, (text, continuation) in zip(answers, pairs, strict=True):
        ids, length = tokenizer(text + continuation, return_tensors="pt").input_ids, len(tokenizer(text).input_ids)
        logprobs = module(ids).logits.detach()[0, length - 1 : -1].log_softmax(-1)
        assert answer.logprob == pytest.approx(float(logprobs.gather(1, ids[0, length:, None]).sum()), abs=1e-3)
    for text, answer in zip(texts, generated, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = module.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert answer.text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_recurrent_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    path = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1)).save_pretrained(path)
    with pytest.raises(UserError, match="all attention"):
        Model(path, torch.float32, "cpu")


def test_a_reward_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    path = tmp_path / "reward"
    AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1).save_pretrained(path)
    with pytest.raises(UserError, match="scores texts"):
        Model(path, torch.float32, "cpu")

"""Which files are scored: their origin at a commit, and the digest of their content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Pin:
    """One third-party file.

    `mirror` is its path below RLHF_BENCH_DATA; a copy there may be gzipped. `sha256`, `bytes` and `rows` are of the
    unpacked content, so every copy answers to one digest: of an archive of CSV files it is `archives.csv_content`, so
    that a zip and a .tar.xz of the same files are the same. `repo`, `commit` and `path` name the origin on GitHub;
    `hub` is the same file as "organisation/dataset@revision:path" on the Hugging Face hub, where that copy is known.
    """

    mirror: str
    repo: str
    commit: str
    path: str
    sha256: str
    bytes: int
    rows: int
    licence: str
    hub: str | None = None

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{self.path}"

    @property
    def source(self) -> str:
        """The origin, for people and manifests."""
        return f"github.com/{self.repo}@{self.commit[:12]}:{self.path}"


_GSM8K = "openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c"
_ARC = "AGI-Edgerunners/LLM-Adapters", "816657208af4db747803f87ba40a4c71383fed7a"
_ALPACA_EVAL = "tatsu-lab/alpaca_eval", "cd543a149df89434d8a54582c0151c0b945c3d20"

_MMLU = "hiyouga/LLaMA-Factory", "465ee8119aa489a41bee0b01b3c105a2f3dd137f"
_TRUTHFULQA = "ictnlp/TruthX", "a41093a6ae3bcbcb523759da782de0f329d03d91"
_HUMANEVAL = "openai/human-eval", "6d43fb980f9fee3c892a914eda09951f772ad10d"
_HUMANEVAL_PLUS = "evalplus/humanevalplus_release", "200defce9e3429d28ca215b6dd061c0f7f31c18b"
_MBPP = "deepseek-ai/DeepSeek-Coder", "2f9fd85927c669dae3c0fbb2d607274023af243e"
_MBPP_PLUS = "evalplus/mbppplus_release", "dadf43da556a00f7bacd71cb154f2932757d9144"
_FASTCHAT = "lm-sys/FastChat", "0e6d3e4beaab66f4d3f93db72541a4abab8af28d"
_ARENA_HARD = "lmarena/arena-hard-auto", "196f6b826783b3da7310e361a805fa36f0be83f3"
_ARENA_HARD_V01 = "lmarena/arena-hard-auto", "b4b78bf3b274e1cf4aa974d8bdf71c06938df604"
_MBPP_SANITIZED = "mrigankpawagi/PropertyEval", "679140cc9111dd2ec3f4afeb3c0663f1ab24112c"

PINS: Mapping[str, Pin] = MappingProxyType(
    {
        "gsm8k/test": Pin(
            "gsm8k/test.jsonl",
            *_GSM8K,
            path="grade_school_math/data/test.jsonl",
            sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            bytes=749738,
            rows=1319,
            licence="MIT",
        ),
        "gsm8k/train": Pin(
            "gsm8k/train.jsonl.gz",
            *_GSM8K,
            path="grade_school_math/data/train.jsonl",
            sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            bytes=4166206,
            rows=7473,
            licence="MIT",
        ),
        "arc_challenge/test": Pin(
            "arc/ARC-Challenge.test.instruction.json.gz",
            *_ARC,
            path="dataset/ARC-Challenge/test.json",
            sha256="4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7",
            bytes=622510,
            rows=1172,
            licence="CC-BY-SA-4.0",
        ),
        "arc_challenge/train": Pin(
            "arc/ARC-Challenge.train.instruction.json.gz",
            *_ARC,
            path="dataset/ARC-Challenge/train.json",
            sha256="a9debff28aafed86a08211dc3584a3b6cb38edca8c56bb34cd5002ed54aeebfb",
            bytes=585556,
            rows=1119,
            licence="CC-BY-SA-4.0",
        ),
        "mmlu/questions": Pin(
            "mmlu/mmlu.tar.xz",
            *_MMLU,
            path="evaluation/mmlu/mmlu.zip",
            sha256="5aacc4d3ffc18f0d301f9ff71ab69a7b4338d835379960e8e180b41d596a4c5a",
            bytes=7182752,
            rows=15858,
            licence="MIT",
        ),
        "truthfulqa_mc1/validation": Pin(
            "truthfulqa/mc_task.json",
            *_TRUTHFULQA,
            path="TruthfulQA/data/mc_task.json",
            sha256="b3799639bc76c939836d587de7d30b48d91012cb34be04806d33106ce06c162a",
            bytes=755456,
            rows=817,
            licence="Apache-2.0",
        ),
        "humaneval/test": Pin(
            "humaneval/HumanEval.jsonl.gz",
            *_HUMANEVAL,
            path="data/HumanEval.jsonl.gz",
            sha256="1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
            bytes=214438,
            rows=164,
            licence="MIT",
        ),
        "humaneval_plus/test": Pin(
            "humaneval/HumanEvalPlus.jsonl.gz",
            *_HUMANEVAL_PLUS,
            path="HumanEvalPlus.jsonl.gz",
            sha256="42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f",
            bytes=7714666,
            rows=164,
            licence="Apache-2.0",
        ),
        "mbpp/test": Pin(
            "mbpp/mbpp.jsonl",
            *_MBPP,
            path="Evaluation/MBPP/data/mbpp.jsonl",
            sha256="ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
            bytes=563743,
            rows=974,
            licence="CC-BY-4.0",
        ),
        "mbpp_plus/test": Pin(
            "mbpp/MbppPlus.jsonl.gz",
            *_MBPP_PLUS,
            path="MbppPlus.jsonl.gz",
            sha256="b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad",
            bytes=2592369,
            rows=378,
            licence="Apache-2.0",
        ),
        "mbpp_plus/sanitized": Pin(
            "mbpp/sanitized-mbpp.json",
            *_MBPP_SANITIZED,
            path="sanitized-mbpp.json",
            sha256="ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
            bytes=255053,
            rows=427,
            licence="CC-BY-4.0",
        ),
        "alpaca_eval/baseline": Pin(
            "alpaca_eval/baseline_gpt4_1106_preview.model_outputs.json.gz",
            *_ALPACA_EVAL,
            path="results/gpt4_1106_preview/model_outputs.json",
            sha256="83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
            bytes=1899765,
            rows=805,
            licence="CC-BY-NC-4.0",
        ),
        "mt_bench/questions": Pin(
            "mt_bench/question.jsonl",
            *_FASTCHAT,
            path="fastchat/llm_judge/data/mt_bench/question.jsonl",
            sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
            bytes=48929,
            rows=80,
            licence="Apache-2.0",
        ),
        "mt_bench/references": Pin(
            "mt_bench/reference_answer.gpt-4.jsonl",
            *_FASTCHAT,
            path="fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl",
            sha256="f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
            bytes=51109,
            rows=30,
            licence="Apache-2.0",
        ),
        "mt_bench/judge": Pin(
            "mt_bench/judge_prompts.jsonl",
            *_FASTCHAT,
            path="fastchat/llm_judge/data/judge_prompts.jsonl",
            sha256="fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
            bytes=10449,
            rows=8,
            licence="Apache-2.0",
        ),
        "arena_hard/questions": Pin(
            "arena_hard/v0.1/question.jsonl",
            *_ARENA_HARD,
            path="data/arena-hard-v0.1/question.jsonl",
            sha256="2650242d2883f22b2abd498f273b6a7e02253cce533f5c91a858e1d44aa3002f",
            bytes=272075,
            rows=500,
            licence="Apache-2.0",
        ),
        "arena_hard/baseline": Pin(
            "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl.gz",
            *_ARENA_HARD,
            path="data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl",
            sha256="0f6abc84de4600fde987d9db70f838f4ecdbd27a2f1f4058c12aa322a6f791b2",
            bytes=1270631,
            rows=500,
            licence="Apache-2.0",
        ),
        "arena_hard/judge": Pin(
            "arena_hard/config/judge_config_v0.1.yaml",
            *_ARENA_HARD_V01,
            path="config/judge_config.yaml",
            sha256="3b64f7004fc3a88f60914747b8c2b73ac04cbd6109e5901e328b9cba796e0c89",
            bytes=2400,
            rows=1,
            licence="Apache-2.0",
        ),
        "alpaca_eval_lc/gamed": Pin(
            "alpaca_eval/df_gamed.csv",
            *_ALPACA_EVAL,
            path="df_gamed.csv",
            sha256="97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d",
            bytes=1 << 20,  # a bound: its size is not known here, its digest is
            rows=1610,
            licence="CC-BY-NC-4.0",
            hub="tatsu-lab/alpaca_eval@2edc6fad8be6b14ea7230aabfd08188da6b8b814:df_gamed.csv",
        ),
        "alpaca_eval_lc_recovered/gamed": Pin(
            "alpaca_eval/recovered/df_gamed_surrogate.csv.gz",
            *_ALPACA_EVAL,
            path="(derived from published weights)",
            sha256="129fc9aa47d44c169362f76b4e272603735a0e73565cc89f970ac65ec11591f2",
            bytes=119817,
            rows=1610,
            licence="CC-BY-NC-4.0",
        ),
    }
)
"""By name, "benchmark/part"."""

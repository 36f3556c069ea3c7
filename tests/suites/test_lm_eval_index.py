"""Names of lm-eval's tasks, against lm-eval's own index and its own resolution of groups."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind, TaskIndex

from rlhf_bench.harness.errors import UserError
from rlhf_bench.suites import lm_eval_index
from rlhf_bench.suites.lm_eval_index import index, members, merged, packaged


def plain(config: dict[str, Any]) -> str:
    """The settings as text; what is imported anew for each of two loads is the same if its name is."""
    return re.sub(r" at 0x\w+", "", str(sorted(config.items())))


def official(*folders: Path) -> tuple[dict[str, Path | None], dict[str, Path | None], dict[str, set[str]]]:
    """Tasks, groups and tags of lm-eval's own index."""
    logging.getLogger("lm_eval.tasks._index").setLevel(logging.ERROR)
    found = TaskIndex.build(folders)
    tasks = {name: entry.yaml_path for name, entry in found.items() if entry.kind in (Kind.TASK, Kind.PY_TASK)}
    groups = {name: entry.yaml_path for name, entry in found.items() if entry.kind is Kind.GROUP}
    return tasks, groups, {name: entry.tags for name, entry in found.items() if entry.kind is Kind.TAG}


@pytest.mark.slow
def test_every_name_leads_to_the_same_file_as_in_lm_evals_index() -> None:
    ours = index()
    assert (ours.tasks, ours.groups, ours.tags) == official(packaged())


@pytest.mark.parametrize("family", ["mmlu", "bbh", "gpqa", "truthfulqa", "arc", "kbl", "leaderboard", "super_glue"])
def test_the_names_of_a_family_are_those_of_lm_evals_index(family: str) -> None:
    folder = packaged() / family
    ours = merged([folder])
    tasks, groups, tags = official(folder)
    assert (ours.tasks, ours.groups, ours.tags) == (tasks, groups, tags)
    assert tasks


def test_all_names_are_found_in_seconds_not_in_the_18_that_parsing_takes() -> None:
    lm_eval_index._indexed.cache_clear()
    start = time.process_time()
    found = index()
    assert time.process_time() - start < 4
    assert len(found.tasks) > 10_000


@pytest.mark.parametrize(
    ("name", "family"),
    [("bbh", "bbh"), ("mmlu", "mmlu"), ("gpqa", "gpqa"), ("mmlu_pro", "mmlu_pro")],
)
def test_a_group_has_the_members_and_settings_that_lm_eval_gives_them(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, dict[str, Any]] = {}

    class Named:
        def __init__(self, name: str):
            self.task_name = name

    def build(self: TaskFactory, entry: Any, overrides: dict[str, Any] | None) -> Named:
        config = self._load_full_config(entry, overrides)
        built[config["task"]] = config
        return Named(config["task"])

    monkeypatch.setattr(TaskFactory, "_build_task", build)
    registry = TaskIndex.build([packaged() / family])
    TaskFactory().build(registry[name], registry=registry)
    ours = {task.name: lm_eval_index.config(task, resolved=True) for task in members(name, index())}
    assert list(ours) == list(built)
    for task, config in built.items():
        config["metadata"].pop("config_source")
        theirs = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
        assert plain({**ours[task], "metadata": ours[task].get("metadata") or {}}) == plain(theirs)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_every_way_to_write_a_name_is_read(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        a="task: one  # a comment\ntag: [x, 'y']\n",
        b="'task': \"two\"\ntag:\n  - x\n  - z\n",
        c="include: template\ntask: three\n",
        d="group: all\ntask:\n- one\n- task: two\n  num_fewshot: 3\n",
        e="metadata:\n  task: inner\ntask: four\ntag: null\n",
        f="include: a.yaml\ntask: five\n",
    )
    (folder / "template").write_text("tag: [t]\noutput_type: multiple_choice\n")
    ours = merged([folder])
    assert (ours.tasks, ours.groups, ours.tags) == official(folder)
    assert ours.names() == {"one", "two", "three", "four", "five", "all", "x", "y", "z", "t"}


def test_a_folder_of_the_users_own_comes_before_lm_eval_and_the_last_folder_first(tmp_path: Path) -> None:
    one = write(tmp_path / "one", hellaswag="task: hellaswag\n", mine="task: mine\n")
    two = write(tmp_path / "two", other="group: mine\ntask: [hellaswag]\n")
    found = index([one, two])
    assert found.tasks["hellaswag"] == one / "hellaswag.yaml"
    assert (found.kind("mine"), found.kind("gsm8k")) == ("group", "task")
    assert [task.path for task in members("mine", found)] == [one / "hellaswag.yaml"]


def test_a_group_gives_its_members_settings_and_may_define_tasks_of_its_own(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        a="task: a\nnum_fewshot: 1\ndataset_path: json\n",
        b="task: b\ntag: tagged\n",
        g=(
            "group: g\nnum_fewshot: 2\ntask:\n"
            "  - task: a\n    num_fewshot: 5\n  - tagged\n  - group: inner\n    task: [{task: own, repeats: 3}, b]\n"
        ),
    )
    tasks = members("g", merged([folder]))
    assert [task.name for task in tasks] == ["a", "b", "g::inner::own"]
    configs = [lm_eval_index.config(task, resolved=False) for task in tasks]
    assert [config["num_fewshot"] for config in configs] == [5, 2, 2]
    assert configs[2]["repeats"] == 3


def test_a_group_that_holds_itself_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a="group: a\ntask: [b]\n", b="group: b\ntask: [a]\n")
    with pytest.raises(UserError, match="'a' is a member of itself: a > b > a"):
        members("a", merged([folder]))


def test_a_member_that_does_not_exist_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a="group: a\ntask: [nothing]\n")
    with pytest.raises(UserError, match="the lm-eval group 'a' has a member 'nothing' that does not exist"):
        members("a", merged([folder]))


@pytest.mark.parametrize("text", ["task: a\nx: [1\n", "- a\n- b\n", "task: a\ninclude: nowhere.yaml\n"])
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "mine", a=text) / "a.yaml"
    with pytest.raises(UserError, match=r"task file .*a\.yaml cannot be used") as refused:
        lm_eval_index.config(lm_eval_index.Task("a", path, {}), resolved=False)
    assert "\n" not in str(refused.value)

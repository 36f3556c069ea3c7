"""lm-eval's tasks by name, and those in folders of the user's own, without parsing every YAML file.

lm-eval's own index parses 14,000 files (18 s). Here one pass reads the few lines of each that name it (`task`, `group`,
`tag`, `include`), as text, in less than a second; only the files that a name leads to are parsed, by lm-eval's loader.
Names, tags, members of groups and the settings that a group gives its members are those of lm-eval's TaskManager, with
one difference: a folder of the user's own comes first, and is not followed by a warning.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_bench.harness.errors import UserError

_LINE = re.compile(
    rb"""^["']?(task|group|class|tag|include)["']?[ \t]*:[ \t]*  # a key of the file itself,
         ([^\n]*)                                             # its value,
         ((?:\n[ \t]*-[ \t]+[^\n]*)*)                         # or the lines of a list""",
    re.MULTILINE | re.VERBOSE,
)
_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata"}
"""The settings of a group that are its own; the others are for its members."""


class Task(NamedTuple):
    """A task that a name leads to: its file (None where a group defines it in its own) and what a group changes."""

    name: str
    path: Path | None
    changes: Mapping[str, Any]


@dataclass(slots=True)
class Index:
    """The names of some folders: the files of tasks and groups, and the tasks of tags."""

    tasks: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, Path] = field(default_factory=dict)
    tags: dict[str, set[str]] = field(default_factory=dict)

    def kind(self, name: str) -> Literal["task", "group", "tag"] | None:
        """What the name is; a task or a group comes before a tag."""
        if name in self.tasks or name in self.groups:
            return "task" if name in self.tasks else "group"
        return "tag" if name in self.tags else None

    def names(self) -> set[str]:
        """All of them."""
        return {*self.tasks, *self.groups, *self.tags}


def index(include_path: Sequence[Path] = ()) -> Index:
    """lm-eval's own names and those of these folders, which come first."""
    return merged((packaged(), *include_path))


def merged(folders: Sequence[Path]) -> Index:
    """The names of all these folders; where two have the same, the last folder's counts, as in lm-eval."""
    found = Index()
    for folder in folders:
        one = _indexed(folder.resolve())
        for name in one.names():
            found.tasks.pop(name, None)
            found.groups.pop(name, None)
            found.tags.pop(name, None)
        found.tasks |= one.tasks
        found.groups |= one.groups
        found.tags |= one.tags
    return found


def members(name: str, known: Index) -> list[Task]:
    """The tasks that a name leads to, in lm-eval's order: itself, a tag's by name, a group's as it lists them.

    Raises UserError for a group that lists what is neither a task nor a group.
    """
    return list({task.name: task for task in _members(name, known, {}, ())}.values())


def config(task: Task, resolved: bool) -> dict[str, Any]:
    """A task's settings: its file's, with those that a group changes in their place.

    Functions are imported where `resolved`, else they are text. Raises UserError if the file is not a task's.
    """
    found = {**(_loaded(task.path, resolved) if task.path else {}), "task": task.name, **task.changes}
    for key in ("tag", "group", "task_list"):
        found.pop(key, None)
    if not isinstance(found.get("metadata") or {}, dict):
        found["metadata"] = {"_metadata": found["metadata"]}
    return found


def _loaded(path: Path, resolved: bool) -> dict[str, Any]:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(path, resolve_func=resolved))
    except (OSError, ValueError, AttributeError, ImportError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"the lm-eval task file {path} cannot be used: {type(error).__name__}: {said}") from error


def _members(name: str, known: Index, changes: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Task]:
    match known.kind(name):
        case "task":
            yield Task(name, known.tasks[name], changes)
        case "tag":
            for one in sorted(known.tags[name]):
                yield Task(one, known.tasks[one], {**changes, "task": one})
        case "group":
            if name in above:
                raise UserError(f"the lm-eval group '{name}' is a member of itself: {' > '.join((*above, name))}")
            yield from _of_group(name, _loaded(known.groups[name], True), known, changes, (*above, name))
        case None:
            raise UserError(f"the lm-eval group '{above[-1]}' has a member '{name}' that does not exist")


def _of_group(
    name: str, group: Mapping[str, Any], known: Index, changes: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[Task]:
    """The members of a group's `task` list: names, names with changes, groups and tasks that stand in the list."""
    changes = {**{key: value for key, value in group.items() if key not in _GROUP_KEYS}, **changes}
    listed = group.get("task") or []
    for item in [listed] if isinstance(listed, str) else listed:
        if isinstance(item, str):
            yield from _members(item, known, changes, above)
        elif "group" in item and known.kind(item["group"]) is None:
            yield from _of_group(f"{name}::{item['group']}", item, known, changes, above)
        elif "group" in item:
            inner = {key: value for key, value in item.items() if key != "group"}
            yield from _members(item["group"], known, {**changes, **inner}, above)
        elif known.kind(item["task"]) is None:
            own = f"{name}::{item['task']}"
            yield Task(own, None, {**changes, **item, "task": own})
        else:
            yield from _members(item["task"], known, {**changes, **item}, above)


def packaged() -> Path:
    """lm_eval/tasks, without importing it."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError("lm-eval is not installed: pip install lm-eval")
    return (Path(next(iter(found.submodule_search_locations))) / "tasks").resolve()


@functools.lru_cache(maxsize=16)
def _indexed(folder: Path) -> Index:
    found = Index()
    lines: dict[str, dict[str, list[str]]] = {}
    for path in sorted(_yaml_files(folder)):
        keys = _keys(path, lines)
        if "class" not in keys and "group" in keys:
            found.groups.setdefault(keys["group"][0], Path(path))
        elif keys.get("task") and keys["task"][0] not in found.tasks:
            [name] = keys["task"][:1]
            found.tasks[name] = Path(path)
            for tag in keys.get("tag", ()):
                found.tags.setdefault(tag, set()).add(name)
    return found


def _yaml_files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if name not in {"__pycache__", ".ipynb_checkpoints"}]
        yield from (os.path.join(place, name) for name in files if name.endswith(".yaml"))


def _keys(path: str, seen: dict[str, dict[str, list[str]]]) -> Mapping[str, list[str]]:
    """The values of the keys that name a file, by key, with those of the files that it includes."""
    if path in seen:
        return seen[path]
    seen[path] = {}  # a file that includes itself ends here
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return seen[path]
    own = {key.decode(): _values(value, listed) for key, value, listed in _LINE.findall(content)}
    found: dict[str, list[str]] = {}
    for included in own.pop("include", ()):
        found |= _keys(os.path.normpath(os.path.join(os.path.dirname(path), included)), seen)
    seen[path] = found | own
    return seen[path]


def _values(value: bytes, listed: bytes) -> list[str]:
    """The texts of `key: text`, `key: [text, text]`, or of a list below the key."""
    inline = re.sub(rb"(^|\s)#.*", b"", value).strip()
    parts = inline.strip(b"[]").split(b",") if inline.startswith(b"[") else [inline]
    parts += [re.sub(rb"(^|\s)#.*", b"", line.strip().removeprefix(b"-")) for line in listed.splitlines()]
    texts = [part.strip().strip(b"\"'").decode(errors="replace") for part in parts]
    return [text for text in texts if text and text not in ("null", "~")]

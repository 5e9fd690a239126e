"""Choices by name - label rules, tasks, graders, rewards - that this package has and that others can add to.

A choice is a class with a `summary`, a few words for `--help`. To add one, derive from the base class of its kind and
register it, or name it in the entry points of an installed package, so that the commands know it as well:

    @LABEL_RULES.register("safest")
    class Safest(LabelRule): ...

    [project.entry-points."drllm_adapter.label_rules"]
    safest = "my_package:Safest"
"""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .errors import DrLLMError, refusing

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The classes of one kind by name; iterating gives the names.

    Args:
        kind: what messages call a choice, such as "label rule".
        group: the entry points that add to it.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._classes: dict[str, type[T]] = {}
        self._installed: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[C], C]:
        """A decorator that makes a class known under `name`.

        Raises:
            DrLLMError: the name is another class's.
        """

        def add(cls: C) -> C:
            known = self._classes.setdefault(name, cls)
            # The same class once more is a module that was loaded again, as notebooks do.
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise DrLLMError(
                    f"the name of a {self.kind} must be its own, but {name!r} is already {known.__qualname__} of "
                    f"{known.__module__}; choose another name."
                )
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            DrLLMError: there is none, or the package that offers it cannot be imported.
        """
        if name not in self._classes and name in self._offered():
            entry = self._offered()[name]
            # Whatever another package raises when it is imported.
            with refusing(
                f"the {self.kind} {name!r} must be importable, but {entry.value} is not",
                "mend or remove the package that offers it",
                with_kind=True,
            ):
                self._classes[name] = entry.load()
        if name not in self._classes:
            raise DrLLMError(
                f"the {self.kind} must be one of {', '.join(self)}, but {name!r} was given; choose one of them."
            )
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._classes, *self._offered()]))

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._offered()

    def help(self) -> str:
        """All names with what they are, for `--help`; what other packages offer is named without loading it."""
        summaries = {name: getattr(cls, "summary", "") for name, cls in self._classes.items()}
        return "; ".join(f"{name}: {summaries[name]}" if summaries.get(name) else name for name in self)

    def _offered(self) -> dict[str, EntryPoint]:
        if self._installed is None:
            self._installed = {entry.name: entry for entry in entry_points(group=self.group)}
        return self._installed

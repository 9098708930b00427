"""Listeners of an application. They are in a module of their own, so that each process finds them by the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract

from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin


class Reader(MessageQueueListener):
    """Stores the payloads that it received; pickled without help."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.heard: list[str] = []

    def on_message(self, msg: MessageContract) -> None:
        self.heard.append(f"{msg.payload}")


class Translator(Reader, ObjectAsKeyValuePersistenceMixin):
    """Holds a function, which pickle refuses; the mixin's methods name what to store, and set it up again."""

    def __init__(self, name: str, language: str) -> None:
        super().__init__(name)
        self.language = language
        self.translate: Callable[[str], str] = {"loud": lambda text: text.upper(), "short": lambda text: text[:9]}[
            language
        ]

    def on_message(self, msg: MessageContract) -> None:
        self.heard.append(self.translate(f"{msg.payload}"))

    @property
    def kv_key(self) -> str:
        return self.id

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "language": self.language}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "heard": self.heard}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.id, self.heard = setup["id"], setup["heard"]

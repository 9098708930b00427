"""``MessageCodec``: messages to the columns ``message_type`` and ``message`` and back, as pickles or as JSON.

A message stored as JSON is its payload alone, as UTF-8; its type is the other column. A pickle begins with the byte
0x80, which no JSON text has, so that readers tell the two apart whatever they write themselves.
"""

from __future__ import annotations

from typing import NamedTuple

from eric_sse.exception import RepositoryError
from eric_sse.message import Message, MessageContract

from eric_sse_sql import plain_json
from eric_sse_sql.arguments import kind_of, validate_type
from eric_sse_sql.codec import PersistentReference, PickleCodec, class_path
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.pickles import message_blob
from eric_sse_sql.pickles.signature import SIGNATURE_BYTES, SIGNATURE_MARK

PICKLE, JSON = "pickle", "json"
FORMATS = PICKLE, JSON
MAX_TYPE_CHARACTERS = 255
PICKLE_START = b"\x80"


class Serialized(NamedTuple):
    """A message before it is signed for a row."""

    message_type: str  # as the column shows it
    content: bytes  # a pickle of the message, or its payload as JSON

    @property
    def is_json(self) -> bool:
        """Whether the content is JSON."""
        return self.content[:1] != PICKLE_START


class MessageCodec:
    """Encodes messages in one of the two formats, and decodes both. Safe to share between threads.

    :param codec: pickles, signs and verifies
    :param messages: the format of what is encoded: ``"pickle"`` or ``"json"``
    :raises RepositoryError: for another format
    """

    def __init__(self, codec: PickleCodec, messages: str = PICKLE) -> None:
        if messages not in FORMATS:
            raise RepositoryError('messages= must be "pickle" or "json"') from ValueError(kind_of(messages))
        self.codec = codec
        self.writes_json = messages == JSON

    @property
    def signs(self) -> bool:
        """Whether each blob is valid in its own row only."""
        return self.codec.signs

    def serialize(self, message: MessageContract, reference: PersistentReference | None = None) -> Serialized:
        """The first step of :meth:`encode`, done once for a message that is stored in many rows.

        :param reference: the database that stores the message
        :raises RepositoryError: when the message could not be decoded as it is
        """
        message_type = column_type(message)
        if self.writes_json:
            return Serialized(message_type, _json_of(message, message_type))
        return Serialized(message_type, self.codec.pickled(message, reference))

    def sign(self, serialized: Serialized, context: str) -> bytes:
        """The blob of a message in a row: the second step of :meth:`encode`.

        :param context: identifies the row: the table, and its queue, or its channel and listener
        :raises RepositoryError: when it is larger than the codec allows
        """
        return self.codec.sign(serialized.content, _context(serialized.message_type, context, serialized.is_json))

    def encode(
        self, message: MessageContract, context: str, reference: PersistentReference | None = None
    ) -> tuple[str, bytes]:
        """The two columns of a message: its type and its blob.

        :raises RepositoryError: as :meth:`serialize` and :meth:`sign`
        """
        serialized = self.serialize(message, reference)
        return serialized.message_type, self.sign(serialized, context)

    def verify(self, message_type: str, blob: bytes, context: str) -> Serialized:
        """The message of a blob, after its size and signature are found valid, and before it is decoded.

        :raises RepositoryError: for another size or signature, and for a value that is no blob
        """
        is_json = isinstance(blob, bytes) and not content_of(blob).startswith(PICKLE_START)
        return Serialized(message_type, self.codec.verify(blob, _context(message_type, context, is_json)))

    def deserialize(self, serialized: Serialized, reference: PersistentReference | None = None) -> MessageContract:
        """The message, from what :meth:`verify` returns.

        :param reference: the database that loads the message
        :raises RepositoryError: when it is damaged, or has an object of a class that is not allowed
        """
        if serialized.is_json:
            return Message(serialized.message_type, plain_json.loaded(serialized.content))
        message: MessageContract = self.codec.unpickled(serialized.content, reference)
        return message

    def decode(
        self, message_type: str, blob: bytes, context: str, reference: PersistentReference | None = None
    ) -> MessageContract:
        """The message of the two columns, in either format.

        :raises RepositoryError: as :meth:`verify` and :meth:`deserialize`
        """
        return self.deserialize(self.verify(message_type, blob, context), reference)

    def json_of(self, message_type: str, blob: bytes, context: str) -> bytes | None:
        """The payload of a message that is stored as JSON, as UTF-8 JSON without line breaks. None for a pickle.

        :raises RepositoryError: as :meth:`verify`, and when it is not JSON
        """
        serialized = self.verify(message_type, blob, context)
        if not serialized.is_json:
            return None
        payload = plain_json.loaded(serialized.content)
        has_line_breaks = b"\n" in serialized.content or b"\r" in serialized.content  # where plain SQL wrote it
        return plain_json.dumped(payload) if has_line_breaks else serialized.content


def column_type(message: MessageContract) -> str:
    """The type of a message as the table shows it to people.

    :raises RepositoryError: for what is no message
    """
    validate_type("a message", message, MessageContract, "write Message(type, payload)")
    with repository_errors("the type of the message can't be read"):
        kind = str(message.type)[:MAX_TYPE_CHARACTERS]
    if kind.isascii() and "\0" not in kind:
        return kind
    return kind.encode(errors="replace").decode().replace("\0", "\ufffd")


def content_of(blob: bytes) -> bytes:
    """A blob, or its beginning, after the signature, where it has one; that is not verified."""
    return blob[SIGNATURE_BYTES:] if blob.startswith(SIGNATURE_MARK) else blob


def _context(message_type: str, context: str, is_json: bool) -> str:
    """The context of a signature. It has the type of a JSON message, which is no part of the signed bytes."""
    return f"json/{len(message_type)}/{message_type}/{context}" if is_json else context


def _json_of(message: MessageContract, shown_type: str) -> bytes:
    """The payload of a message as JSON.

    :param shown_type: its type as the column shows it
    """
    content = message_blob.content_of(message)
    if content is None:
        raise RepositoryError(
            f"a message of class {class_path(type(message))} can't be stored as JSON; send a Message, or make the "
            'Database without messages="json"'
        ) from TypeError(kind_of(message))
    message_type, payload = content
    if type(message_type) is not str or message_type != shown_type:
        raise RepositoryError(
            f"the type of a message that is stored as JSON must be a str of at most {MAX_TYPE_CHARACTERS} characters, "
            "without NUL and lone surrogates"
        ) from ValueError(kind_of(message_type))
    return plain_json.dumped(payload)

"""Chat messages through the tokenizer's own template."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from curlora_lab.data.checks import Example, missing_fault, short
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.source import Row

Message = dict[str, str]


def check_messages(row: Row, column: str, *, answered: bool) -> list[Message] | Fault:
    """Read a list of messages.

    Args:
        row: The row.
        column: Where the messages are: a list of ``{role, content}``; or a text, which is what the user says.
        answered: Whether the last message must be the assistant's, with at least one before it.

    Returns:
        The messages, or what is wrong with them.
    """
    if (fault := missing_fault(row, column)) is not None:
        return fault
    value = row.values[column]
    if isinstance(value, str) and not answered:
        value = [{"role": "user", "content": value}]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        reason = f"{column!r} is {short(value)}, not a list of messages {{role, content}}"
        return Fault(row.where, "messages of a wrong type", reason)
    for message in value:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            reason = (
                f"a message of {column!r} is {short(message)}; it needs a role and a content, both texts, not empty"
            )
            return Fault(row.where, "broken message", reason)
    messages = [{"role": str(message["role"]), "content": str(message["content"])} for message in value]
    if answered and (len(messages) < 2 or messages[-1]["role"] != "assistant"):
        reason = f"{column!r} ends with a message of {messages[-1]['role']!r}; the last of at least two must be the assistant's"
        return Fault(row.where, "no response", reason)
    return messages


def transcript(messages: Sequence[Message]) -> str:
    """Messages as a person would read them."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def render_chat(tokenizer: Any, messages: Sequence[Message], example: Example) -> tuple[str, str]:
    """Prompt and response as the tokenizer's chat template writes them.

    Args:
        tokenizer: Has a chat template.
        messages: What was said before the response.
        example: Its ``target`` is the response; None: there is none yet.

    Returns:
        The prompt, up to where the assistant begins; and the response with what the template puts behind it.

    Raises:
        ValueError: If the tokenizer has no chat template, or one whose prompt is not the beginning of the whole chat.
        DataError: If the template refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so chat messages cannot be put together; use an instruction-tuned model, save "
            "the tokenizer with one (tokenizer.chat_template = ...), or use columns and a template instead of messages or chat."
        )
    try:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        if example.target is None:
            return prompt, ""
        answer = {"role": "assistant", "content": example.target}
        whole = tokenizer.apply_chat_template([*messages, answer], tokenize=False)
    except TemplateError as error:
        raise DataError(f"{example.where}: the tokenizer's chat template refuses these messages: {error}.") from error
    if not whole.startswith(prompt):
        raise ValueError(
            f"the tokenizer's chat template writes {prompt[-40:]!r} before a response that it shall make, but something else "
            "before one that it is given; mend the template, or use columns and a template instead."
        )
    return prompt, whole[len(prompt) :]

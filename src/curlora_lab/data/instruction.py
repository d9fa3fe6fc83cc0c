"""The data of instruction tuning: a prompt and a response, from columns with a template or from chat messages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curlora_lab.data.answers import Pair, pair_rows, tokenize_pairs
from curlora_lab.data.chat import check_messages, render_chat, transcript
from curlora_lab.data.checks import BadRows, Example, apply_policy, missing_fault, refuse_absent_columns, text_fault
from curlora_lab.data.classification import pad_token_id
from curlora_lab.data.encoding import check_length
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Selection, check_policy, gather
from curlora_lab.data.source import DataSource, Row, Split
from curlora_lab.data.splitting import EvaluateOn, Subset
from curlora_lab.data.templates import Templates


class InstructionData(HoldsRows):
    """Prompts with responses: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    A prompt comes from ``columns`` and a template, and the response follows it immediately; or, with ``chat``, the prompt is
    what the user says and the tokenizer's chat template puts both together; or ``messages`` names a column with a list of
    ``{role, content}``, the last of them the assistant's, which is the response (earlier ones are context). Only the tokens of
    the response, and the end token behind it, are targets.

    A prompt above ``max_prompt`` loses tokens from its middle, so that the instruction at its beginning and the cue at its end
    stay; a response that does not fit behind it loses its end. Both are counted. A row without room for any of its response
    is a broken row.

    Args:
        name: Name of the task.
        source: Where rows come from.
        columns: Columns of the prompt in order.
        response: Column of the response.
        template: Text with the columns in braces; of a list, each row takes the first whose columns are all filled. None: the
            columns with blank lines between and a newline behind.
        messages: Column of chat messages, in place of columns, response and template.
        chat: Whether prompt and response go through the tokenizer's chat template.
        system: What the system says at the beginning of each chat.
        end: Whether an end token follows the response; a chat template brings its own.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` or ``first``.
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of the training rows set aside for choosing.
        test_fraction: Part of them set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Rows to train on; None for all.
        eval_rows: At most so many rows to test on; None for all.
        max_length: Tokens of prompt and response together.
        max_prompt: Tokens of the prompt, or below 1 the part of ``max_length``; None: prompts are never cut.
        best: Best achievable score of the main metric, where it is known.

    Attributes:
        fingerprint: sha256 of the rows used; empty before ``prepare``.
        counts: Rows used of each role.
        notes: As in ``ClassificationData``; further codes are ``truncated`` and ``merged``.

    Raises:
        ValueError: If an argument cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        columns: Sequence[str] = ("prompt",),
        response: str = "answer",
        template: str | Sequence[str] | None = None,
        messages: str | None = None,
        chat: bool = False,
        system: str | None = None,
        end: bool = True,
        sort_by: Mapping[str, str] | None = None,
        subset: Subset = "random",
        bad_rows: BadRows = "stop",
        choose_fraction: float = 0.1,
        test_fraction: float = 0.2,
        evaluate_on: EvaluateOn = "test",
        train_rows: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 128,
        max_prompt: float | None = 0.75,
        best: float | None = None,
    ) -> None:
        check_policy(bad_rows)
        if system is not None and not (chat or messages):
            raise ValueError(
                f"task {name!r}: system is what a chat begins with; set chat=true, or put it into template."
            )
        self.name = name
        self.source = source
        self.columns = (messages,) if messages else tuple(columns)
        self.response = response
        self.messages = messages
        self.chat = chat or messages is not None
        self.system = system
        self.end = end and not self.chat
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.prompt_limit = _prompt_limit(max_prompt, max_length)
        self.best = best
        self.notes: list[str] = []
        self.templates = Templates(self.columns, None if messages else template)
        self._selection = Selection(
            train_rows=train_rows,
            eval_rows=eval_rows,
            subset=subset,
            sort_by=sort_by or {},
            choose_fraction=choose_fraction,
            test_fraction=test_fraction,
            evaluate_on=evaluate_on,
        )
        self._held = Held(name=name)

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None = None) -> None:
        """Load, check, divide and tokenise; a second call does it anew.

        Args:
            tokenizer: A fast Hugging Face tokenizer with a pad token; with a chat template where one is asked for.
            seed: The run's seed: which rows are trained on and set aside for choosing.
            cache_dir: Without effect: tokenising is a small part of such a run.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        check_length(tokenizer, self.max_length)
        used, notes = gather(self.source, self._selection, check=self._check, bad_rows=self.bad_rows, seed=seed)
        self._hold(tokenizer, used, notes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the response is the label."""
        return ()

    def prompt(self, example: Example) -> str:
        """What is asked, as a person would read it (without what a chat template adds)."""
        return example.texts[0] if self.messages else self.templates.fill(example.texts)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _check(self, split: Split, *, labelled: bool = True) -> tuple[list[Example], list[Fault], Counter[str]]:
        needed = [*self.columns, *([self.response] if labelled and not self.messages else [])]
        refuse_absent_columns(split.rows, needed)
        examples: list[Example] = []
        faults = list(split.faults)
        for row in split.rows:
            found = self._from_messages(row, labelled) if self.messages else self._from_columns(row, labelled)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                examples.append(found)
        return examples, faults, Counter()

    def _from_columns(self, row: Row, labelled: bool) -> Example | Fault:
        for column in self.columns:
            if (fault := missing_fault(row, column)) is not None:
                return fault
            if row.values[column] != "" and (fault := text_fault(row, column)) is not None:
                return fault
        texts = tuple(row.values[column] for column in self.columns)
        if not self.templates.fits(texts):
            empty = ", ".join(column for column, text in zip(self.columns, texts, strict=True) if not text)
            return Fault(row.where, "empty text", f"{empty} is empty, and no template does without")
        if labelled and (fault := text_fault(row, self.response)) is not None:
            return fault
        target = row.values[self.response] if labelled else None
        return Example(row.where, row.row_id, texts, -1, row.values, target)

    def _from_messages(self, row: Row, labelled: bool) -> Example | Fault:
        found = check_messages(row, str(self.messages), answered=labelled)
        if isinstance(found, Fault):
            return found
        asked, answer = (found[:-1], found[-1]["content"]) if labelled else (found, None)
        return Example(
            row.where, row.row_id, (transcript(asked),), -1, {**row.values, str(self.messages): asked}, answer
        )

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _hold(self, tokenizer: Any, used: Mapping[str, list[Example]], notes: list[str]) -> None:
        """Tokenise the rows of each role and hold them."""
        pad = pad_token_id(tokenizer)
        taken, rows = {}, {}
        for role, examples in used.items():
            pairs = self._pairs(tokenizer, examples)
            kept, tokens, noted = self._cut(tokenizer, role, examples, pairs, pad)
            taken[role], rows[role] = kept, tokens
            notes = [*notes, *noted]
        self._held, self.notes = Held(name=self.name, examples=taken, rows=rows), notes

    def _pairs(self, tokenizer: Any, examples: Sequence[Example]) -> list[Pair]:
        if not self.chat:
            prompts = [self.templates.fill(example.texts) for example in examples]
            return tokenize_pairs(tokenizer, prompts, [example.target or "" for example in examples])
        rendered = [render_chat(tokenizer, self._chat(example), example) for example in examples]
        return tokenize_pairs(
            tokenizer, [prompt for prompt, _ in rendered], [answer for _, answer in rendered], special=False
        )

    def _chat(self, example: Example) -> list[dict[str, str]]:
        """The messages before the response."""
        begin = [] if self.system is None else [{"role": "system", "content": self.system}]
        if self.messages:
            return [*begin, *example.values[self.messages]]
        return [*begin, {"role": "user", "content": self.templates.fill(example.texts)}]

    def _cut(
        self, tokenizer: Any, role: str, examples: Sequence[Example], pairs: Sequence[Pair], pad: int
    ) -> tuple[list[Example], TokenRows, list[str]]:
        """Rows of at most ``max_length`` tokens, and notes on what was cut or left out."""
        end = [tokenizer.eos_token_id] if self.end and tokenizer.eos_token_id is not None else []
        kept: list[int] = []
        cut: list[Pair] = []
        faults: list[Fault] = []
        shortened = np.zeros((2, len(pairs)), dtype=np.bool_)
        for index, (example, pair) in enumerate(zip(examples, pairs, strict=True)):
            prompt = _without_middle(pair.prompt, self.prompt_limit)
            answer = np.append(pair.answer, np.asarray(end, dtype=np.int32)) if example.target else pair.answer[:0]
            room = self.max_length - len(prompt)
            if room < (1 if example.target else 0):
                faults.append(self._no_room(example, len(prompt)))
                continue
            shortened[:, index] = len(prompt) < len(pair.prompt), len(answer) > room
            kept.append(index)
            cut.append(Pair(prompt, answer[:room], pair.merged))
        note = apply_policy(faults, rows=len(examples), policy=self.bad_rows, role=role)
        if not kept:
            raise DataError(f"task {self.name!r} has no usable {role} row.")
        notes = [*filter(None, [note]), *_notes(role, shortened[:, kept], sum(pair.merged for pair in cut))]
        tokens = pair_rows(cut, np.logical_or(*shortened[:, kept]), role=role, pad=pad)
        return [examples[index] for index in kept], tokens, notes

    def _no_room(self, example: Example, tokens: int) -> Fault:
        reason = (
            f"the prompt has {tokens} tokens, which leaves none of max_length={self.max_length} to the response; raise "
            "max_length, or cut prompts with max_prompt"
        )
        return Fault(example.where, "no room for the response", reason)


def _prompt_limit(max_prompt: float | None, max_length: int) -> int | None:
    """Tokens that a prompt may have.

    Raises:
        ValueError: If it leaves no token to the response.
    """
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a row needs 2 tokens, one to read and one to predict.")
    if max_prompt is None:
        return None
    limit = int(max_prompt * max_length) if max_prompt < 1 else int(max_prompt)
    if not 1 <= limit < max_length or (max_prompt >= 1 and limit != max_prompt):
        raise ValueError(
            f"max_prompt is {max_prompt}; write a number of tokens from 1 to {max_length - 1} (max_length is {max_length}), a "
            "part of max_length between 0 and 1, or null."
        )
    return limit


def _without_middle(prompt: Any, limit: int | None) -> Any:
    if limit is None or len(prompt) <= limit:
        return prompt
    head = (limit + 1) // 2
    return np.concatenate([prompt[:head], prompt[len(prompt) - (limit - head) :]])


def _notes(role: str, shortened: Any, merged: int) -> list[str]:
    prompts, answers = (int(part.sum()) for part in shortened)
    rows, notes = shortened.shape[1], []
    if prompts or answers:
        notes.append(
            f"truncated: of {rows} {role} rows {prompts} prompts without their middle, {answers} responses without their end"
        )
    if merged:
        notes.append(
            f"merged: in {merged} of {rows} {role} rows prompt and response would share a token; they are tokenised apart"
        )
    return notes

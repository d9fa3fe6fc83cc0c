"""The data of extractive question answering: questions, each with a text that holds the answer, ready for loading."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curlora_lab.data.alignment import aligned, flat
from curlora_lab.data.checks import (
    BadRows,
    Example,
    apply_policy,
    check_split,
    missing_fault,
    refuse_absent_columns,
    sorted_out,
    text_example,
)
from curlora_lab.data.classification import pad_token_id
from curlora_lab.data.encoding import Encoder, check_length, check_template
from curlora_lab.data.faults import DataError, Fault
from curlora_lab.data.held import Held, HoldsRows
from curlora_lab.data.loading import TokenRows
from curlora_lab.data.preparation import Selection, check_policy, gather
from curlora_lab.data.source import DataSource, Row, Split
from curlora_lab.data.spans import read_answers
from curlora_lab.data.splitting import EvaluateOn, Subset
from curlora_lab.data.windows import Window, cut_windows

QUESTION, CONTEXT = 0, 1


class QuestionData(HoldsRows):
    """Questions on texts: checked, divided into roles, tokenised. Nothing is read before ``prepare``.

    A context that is too long for ``max_length`` is read in overlapping windows, each with the whole question before it;
    the rows of a role are these windows, and ``row_ids`` repeats a question's id for each of its own.

    Args:
        name: Name of the task.
        source: Where rows come from.
        question: The column with the question.
        context: The column with the text that holds the answer.
        answers: The column with the right answers: ``{text: [...], answer_start: [...]}`` as in SQuAD, or a list of
            ``{text, answer_start}``; characters count from 0. Training takes the first.
        no_answer: Whether a question may have none (SQuAD 2); otherwise such a row is broken.
        template: Text with the two columns in braces; None: see ``Encoder``. The question must come first, or a decoder
            would read the text without knowing what is asked.
        stride: Tokens that neighbouring windows share; None: a third of ``max_length``, customary, but no more than half of
            what a question leaves.
        sort_by: Role -> column by which its rows are sorted before anything is taken.
        subset: ``random`` or ``first``.
        bad_rows: ``stop`` or ``skip``.
        choose_fraction: Part of train set aside for choosing.
        test_fraction: Part of train set aside for testing where the source has no test split.
        evaluate_on: ``test``; ``choose``: the part for choosing is evaluated, and the reported split not even read.
        train_rows: Questions to train on; None for all.
        eval_rows: At most so many questions to test on; None for all.
        max_length: Tokens a window may have, the question included.
        best: Best achievable score of the main metric, where it is known.

    Attributes:
        notes: What a reader of the scores should know, as in ``ClassificationData``.

    Raises:
        ValueError: If an argument cannot be right, whatever the data are.
    """

    def __init__(
        self,
        *,
        name: str,
        source: DataSource,
        question: str = "question",
        context: str = "context",
        answers: str = "answers",
        no_answer: bool = False,
        template: str | None = None,
        stride: int | None = None,
        sort_by: Mapping[str, str] | None = None,
        subset: Subset = "random",
        bad_rows: BadRows = "stop",
        choose_fraction: float = 0.1,
        test_fraction: float = 0.2,
        evaluate_on: EvaluateOn = "test",
        train_rows: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 128,
        best: float | None = None,
    ) -> None:
        check_policy(bad_rows)
        check_template((question, context), template, "template")
        if stride is not None and stride < 0:
            raise ValueError(f"stride is {stride}; windows share 0 tokens or more.")
        if template is not None and template.index(f"{{{context}}}") < template.index(f"{{{question}}}"):
            raise ValueError(f"template {template!r} has the context before the question; put the question first.")
        self.name = name
        self.source = source
        self.columns: tuple[str, ...] = (question, context)
        self.answers = answers
        self.no_answer = no_answer
        self.template = template
        self.stride = stride
        self.bad_rows = bad_rows
        self.max_length = max_length
        self.best = best
        self.notes: list[str] = []
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
        self._windows: dict[str, list[Window]] = {}
        self._owner: dict[str, NDArray[np.int64]] = {}

    def prepare(self, tokenizer: Any, *, seed: int, cache_dir: Path | None = None) -> None:
        """Load, check, divide and tokenise; a second call does it anew.

        Args:
            tokenizer: A fast Hugging Face tokenizer with a pad token.
            seed: The run's seed: which questions are trained on and set aside for choosing.
            cache_dir: Without effect. The cache holds ids only, and here each token needs its characters too; a few
                microseconds a token (2 s for wnut17, 3 s for xquad_en, about a minute for SQuAD) did not ask for another.

        Raises:
            DataError: If the data cannot be used as they are.
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        pad_token_id(tokenizer), self.encoder(tokenizer)  # before any row is read
        used, notes = gather(self.source, self._selection, check=self._check, bad_rows=self.bad_rows, seed=seed)
        if not any(example.target["text"] for example in used["train"]):
            raise DataError(f"task {self.name!r}: none of the {len(used['train'])} train questions has an answer.")
        self._hold(tokenizer, used, notes)

    def encoder(self, tokenizer: Any) -> Encoder:
        """How question and context become tokens, before they are cut into windows.

        Raises:
            ValueError: If tokenizer, template and ``max_length`` do not fit.
        """
        check_length(tokenizer, self.max_length)
        return Encoder(tokenizer, columns=self.columns, template=self.template, max_length=None)

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the answers are texts."""
        return ()

    @property
    def counts(self) -> dict[str, int]:
        """Questions of each role; ``rows`` has their windows."""
        return self._held.counts

    def row_ids(self, role: str) -> tuple[str, ...]:
        """Of each window its question's id; a batch's ``row`` is an index into them."""
        examples = self._held.of(role)
        return tuple(examples[index].row_id for index in self._owner[role])

    def rows(self, role: str) -> TokenRows:
        """The windows of a role.

        ``labels`` are the positions in the window of the answer's first token, counted from 1; 0 where the window does
        not hold the whole answer. Columns: ``end``, the same of its last token; ``context``, the positions, from 0, of the
        context's first token and the one after its last.
        """
        return self._held.tokens(role)

    def questions(self, role: str) -> NDArray[np.int64]:
        """Of each window the index of its question in ``examples``."""
        self._held.of(role)
        return self._owner[role]

    def text_between(self, role: str, window: int, start: int, end: int) -> tuple[str, int]:
        """The context's text from one token of a window to another.

        Args:
            role: The role.
            window: Index of the window.
            start: Position in the window of the first token.
            end: Position of the last.

        Returns:
            The text, and where it begins in the context, in characters.
        """
        context = self._held.of(role)[int(self._owner[role][window])].texts[CONTEXT]
        first, last = self._windows[role][window].characters(start, end)
        return context[first:last], first

    def _hold(self, tokenizer: Any, used: Mapping[str, list[Example]], notes: list[str]) -> None:
        encoder, pad = self.encoder(tokenizer), pad_token_id(tokenizer)
        kept, rows, self._windows, self._owner = {}, {}, {}, {}
        for role, examples in used.items():
            kept[role], parts = self._cut(encoder, examples, role, notes)
            answers = [_first_answer(example) for example in kept[role]]
            placed = [
                [window.with_answer(answer) for window in part] for part, answer in zip(parts, answers, strict=True)
            ]
            windows = list(chain.from_iterable(placed))
            rows[role] = _tokens(windows, role, pad)
            self._windows[role] = windows
            self._owner[role] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            lost = sum(
                answer is not None and not any(window.start for window in part)
                for part, answer in zip(placed, answers, strict=True)
            )
            notes += _counted(len(windows), len(parts), lost, role, self.max_length)
        self._held, self.notes = Held(name=self.name, examples=kept, rows=rows), notes

    def _cut(
        self, encoder: Encoder, examples: list[Example], role: str, notes: list[str]
    ) -> tuple[list[Example], list[list[Window]]]:
        """Each question's windows; what does not fit into any is broken, and treated as ``bad_rows`` says."""
        found = [
            cut_windows(tokens, context=CONTEXT, max_length=self.max_length, stride=self.stride, where=example.where)
            for example, tokens in zip(examples, aligned(encoder, [example.texts for example in examples]), strict=True)
        ]
        faults = [part for part in found if isinstance(part, Fault)]
        notes += filter(None, [apply_policy(faults, rows=len(examples), policy=self.bad_rows, role=role)])
        fitting = [(one, part) for one, part in zip(examples, found, strict=True) if not isinstance(part, Fault)]
        if not fitting:
            raise DataError(f"task {self.name!r}: no {role} question fits into max_length {self.max_length}; raise it.")
        return [example for example, _ in fitting], [part for _, part in fitting]

    def _check(self, split: Split, *, labelled: bool = True) -> tuple[list[Example], list[Fault], Counter[str]]:
        if not labelled:
            return check_split(split, self.columns)
        refuse_absent_columns(split.rows, [*self.columns, self.answers])
        return sorted_out(split, [self._answered(row) for row in split.rows])

    def _answered(self, row: Row) -> Example | Fault:
        found = text_example(row, self.columns)
        if isinstance(found, Fault):
            return found
        fault = missing_fault(row, self.answers)
        if fault is not None:
            return fault
        answers = read_answers(row.values[self.answers], found.texts[CONTEXT], where=row.where, column=self.answers)
        if isinstance(answers, Fault):
            return answers
        if not answers["text"] and not self.no_answer:
            return Fault(
                row.where, "no answer", "the question has no answer, which is allowed with no_answer=true only"
            )
        return Example(found.where, found.row_id, found.texts, -1, row.values, answers)


def _first_answer(example: Example) -> tuple[int, int] | None:
    """First character of the first answer, and the one after its last; None where there is none."""
    if example.target is None or not example.target["text"]:
        return None
    start = example.target["answer_start"][0]
    return start, start + len(example.target["text"][0])


def _tokens(windows: Sequence[Window], role: str, pad: int) -> TokenRows:
    columns = {
        "end": np.array([window.end for window in windows]),
        "context": np.array([(window.context.start, window.context.stop) for window in windows]),
    }
    encoded = flat([window.ids for window in windows], [False] * len(windows))
    return TokenRows(encoded, role, pad, [window.start for window in windows], columns=columns)


def _counted(windows: int, questions: int, split_answers: int, role: str, max_length: int) -> list[str]:
    notes = []
    if windows > questions:
        notes.append(
            f"windows: {questions} {role} questions are read in {windows} windows of at most {max_length} tokens"
        )
    if split_answers:
        notes.append(
            f"windows: no window holds the whole (first) answer of {split_answers} {role} questions; raise max_length or stride"
        )
    return notes

"""Texts from columns: the first template whose columns are all filled."""

import string
from collections.abc import Sequence


class Templates:
    """One or more texts with columns in braces.

    Args:
        columns: The columns, in the order in which their texts come.
        template: A text; or several, of which a row takes the first whose columns are all filled. None: all columns that are
            filled, with blank lines between and a newline behind.

    Raises:
        ValueError: If a template names what is no column, formats a value, or the templates leave a column out altogether.
    """

    def __init__(self, columns: Sequence[str], template: str | Sequence[str] | None) -> None:
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(f"columns is {list(columns)}; name at least one column, each once.")
        self.columns = tuple(columns)
        given = [template] if isinstance(template, str) else template
        self.templates = None if given is None else [(text, self._fields(text)) for text in given]
        if self.templates is not None:
            named = {field for _, fields in self.templates for field in fields}
            if named != set(self.columns):
                raise ValueError(
                    f"template names the columns {sorted(named)}; needed: each of {list(self.columns)}, and no other."
                )

    def fits(self, texts: Sequence[str]) -> bool:
        """Whether there is a template for these texts."""
        if self.templates is None:
            return any(texts)
        return any(self._filled(fields, texts) for _, fields in self.templates)

    def fill(self, texts: Sequence[str]) -> str:
        """The text of a row.

        Args:
            texts: One a column; may be empty.

        Raises:
            ValueError: If no template fits.
        """
        if self.templates is None:
            return "\n\n".join(text for text in texts if text) + "\n"
        for template, fields in self.templates:
            if self._filled(fields, texts):
                return template.format(**dict(zip(self.columns, texts, strict=True)))
        raise ValueError(f"no template does without {[c for c, t in zip(self.columns, texts, strict=True) if not t]}.")

    def _filled(self, fields: frozenset[str], texts: Sequence[str]) -> bool:
        return all(text for column, text in zip(self.columns, texts, strict=True) if column in fields)

    def _fields(self, template: str) -> frozenset[str]:
        try:
            parsed = [part for part in string.Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise ValueError(
                f"template {template!r} cannot be read ({error}); write {{column}}, or {{{{ for a brace."
            ) from error
        fields = frozenset(str(field) for _, field, _, _ in parsed)
        if not fields or not fields <= set(self.columns) or any(spec or how for _, _, spec, how in parsed):
            raise ValueError(
                f"template {template!r} has the fields {sorted(fields)}; allowed: {', '.join(self.columns)}, as they are."
            )
        return fields

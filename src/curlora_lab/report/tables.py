"""Tables for papers and issues: LaTeX in the manner of booktabs, and Markdown."""

from collections.abc import Sequence

from curlora_lab.report import wording

#: Characters that LaTeX reads as commands, and those of our numbers and names that it does not know as text.
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        wording.MINUS: "$-$", wording.MISSING: "--", "±": r"$\pm$", "→": r"$\rightarrow$", "·": r"$\cdot$",
        "α": r"$\alpha$", "Δ": r"$\Delta$", "‖": r"$\Vert$", "×": r"$\times$", "…": r"\dots{}", "\n": " ",
    }
)  # fmt: skip


def latex(text: str) -> str:
    """A text with every character that LaTeX would read as a command written out."""
    return text.translate(LATEX)


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, label: str) -> str:
    r"""A table for a paper; the preamble needs ``\usepackage{booktabs}``.

    Args:
        columns: Names of the columns, the first flush left, the others flush right.
        rows: Texts.
        caption: What stands above it.
        label: What ``\ref`` refers to.

    Returns:
        A ``table`` environment.
    """
    line = [" & ".join(latex(cell) for cell in row) + r" \\" for row in (columns, *rows)]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{latex(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"    \toprule",
            f"    {line[0]}",
            r"    \midrule",
            *(f"    {text}" for text in line[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table in Markdown.

    Args:
        columns: Names of the columns, the first flush left, the others flush right.
        rows: Texts.
        notes: What is said below it; of each the first line.

    Returns:
        The table, with a blank line before the notes.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(columns) - 1)
    table = "\n".join([line(columns), rule, *(line(row) for row in rows)])
    remarks = "".join(f"\n- {note.splitlines()[0]}" for note in notes)
    return f"{table}\n{remarks}\n" if remarks else f"{table}\n"

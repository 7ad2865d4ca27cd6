"""Print the size and the complexity of the code: python docs/code_size.py.

Lines are whole lines of Python unless they are called code lines, which exclude blank lines, comments and docstrings.
The core path is what training and testing import: `slowfast/` without the packages `prepare`, `run`, `inference` and
`visualization`, and without `weights/layouts.py`. Complexity is that of ruff's rule C901. A branch is an `if`, a loop,
a handler of an exception, a conditional expression, a condition of a comprehension, a `case`, or one operand more of an
`and` or `or`.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_CORE = (
    "slowfast/prepare/",
    "slowfast/run/",
    "slowfast/inference/",
    "slowfast/visualization/",
    "slowfast/weights/layouts",
)
DIALECT = r"\b(tells?|told|nobody|whoever|likewise|meanwhile|anew)\b"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.match_case)


def tracked(*patterns: str) -> list[Path]:
    """Return the files of the repository that match the patterns."""
    names = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.splitlines()]


def docstring_nodes(tree: ast.AST) -> list[ast.Constant]:
    """Return the docstrings of a module, its classes and its functions."""
    owners = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)))
    bodies = (node.body[0] for node in owners if node.body)
    values = (first.value for first in bodies if isinstance(first, ast.Expr))
    return [value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in docstring_nodes(ast.parse(text)):
        lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def prose(path: Path) -> str:
    """Return the comments, docstrings and string literals of a module, or the text of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return "\n".join(token.string for token in tokens if token.type in kinds)


def branches(tree: ast.AST) -> int:
    """Return the number of branches below a node."""
    count = 0
    for node in ast.walk(tree):
        count += isinstance(node, BRANCHES)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
    return count


def complex_functions(folders: list[str]) -> int:
    """Return the number of functions of complexity above 10."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "C901", "--ignore-noqa", "--output-format", "json"]
    out = subprocess.run([*command, "--exit-zero", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    return len(json.loads(out.stdout))


def measure() -> dict[str, float | str]:
    """Return the figures by name."""
    folders = ["slowfast", "tools", "benchmarks"]
    files = tracked(*(f"{folder}/**.py" for folder in folders))
    sizes, core, lengths = {}, 0, {}
    functions = forks = lines = 0
    for path in files:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        tree, code = ast.parse(text), code_lines(text)
        sizes[name] = text.count("\n")
        core += sizes[name] if name.startswith("slowfast/") and not name.startswith(NOT_CORE) else 0
        forks, lines = forks + branches(tree), lines + len(code)
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                functions += 1
                lengths[f"{name}:{node.name}"] = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
    longest, largest = max(lengths, key=lengths.__getitem__), max(sizes, key=sizes.__getitem__)
    shell = sum(path.read_text(encoding="utf-8").count("\n") for path in tracked("exp/**.sh", "exp/*.sh"))
    texts = [prose(path) for path in tracked("*.py", "*.md") if path != Path(__file__).resolve()]
    words = sum(len(text.split()) for text in texts)
    dialect = sum(len(re.findall(DIALECT, text, re.IGNORECASE)) for text in texts)
    return {
        "lines of slowfast/, tools/ and benchmarks/": sum(sizes.values()),
        "lines of the core path": core,
        "code lines": lines,
        "longest function, code lines": f"{lengths[longest]} ({longest})",
        "largest file, lines": f"{sizes[largest]} ({largest})",
        "functions": functions,
        "functions of complexity above 10, %": round(100 * complex_functions(folders) / functions, 2),
        "branches per code line": round(forks / lines, 3),
        "lines of shell in exp/": shell,
        "dialect words per 10,000 words": round(1e4 * dialect / words, 2),
    }


def main() -> None:
    """Print the figures."""
    print("".join(f"| {name} | {value} |\n" for name, value in measure().items()), end="")


if __name__ == "__main__":
    main()

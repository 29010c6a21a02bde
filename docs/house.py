"""Draws the architecture as SVG: rooms (packages), their modules, and their imports, all read from the source.

    python docs/house.py house.svg

A room is one floor above the highest room that it imports.
"""

import ast
import sys
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, TOOLS, DOOR = "the library", "clipfsar: tools", "clipfsar: import and command"
# Modules directly in clipfsar/ that give access to the rooms; the others are tools that the rooms use.
ENTRANCE = ("clipfsar", "clipfsar.__main__", "clipfsar.cli")
SUFFIX = "_clipfsar"

WIDTH, MARGIN, GAP, FLOOR_GAP = 1080, 16, 16, 44
CHARACTER, LINE = 6.3, 17


@dataclass
class Room:
    """A group of modules, and the rooms that they import."""

    name: str
    modules: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def module_files() -> dict[str, Path]:
    """Files of all modules of the project by name, without tests and documentation."""
    files = sorted(ROOT.glob(f"*{SUFFIX}.py"))
    for folder in ("clipfsar", "train", "demo", "benchmarks"):
        files += sorted((ROOT / folder).rglob("*.py"))
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def room_of(module: str) -> str:
    """The room of a module: its folder, or one of the named groups."""
    parts = module.split(".")
    if parts[0].endswith(SUFFIX):
        return LIBRARY
    if module in ENTRANCE:
        return DOOR
    if parts[0] == "clipfsar":
        return f"clipfsar/{parts[1]}" if (ROOT / "clipfsar" / parts[1]).is_dir() else TOOLS
    return parts[0]


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Modules of the project that a file imports: also in functions, for type checkers, or as "module:name"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return found & known


@cache
def rooms() -> dict[str, Room]:
    """The rooms by their names."""
    files, found = module_files(), {}
    for module, path in files.items():
        room = found.setdefault(room_of(module), Room(room_of(module)))
        if path.name != "__init__.py" or module in ENTRANCE:
            room.modules.append(module)
        imported = imported_modules(path, set(files)) - {"clipfsar"}  # "clipfsar" itself is imported for its version
        room.imports |= {room_of(other) for other in imported} - {room.name}
    return found


def floor_of(room: str) -> int:
    """0 for a room that imports no other; otherwise one more than the highest imported room."""
    return max((1 + floor_of(other) for other in rooms()[room].imports), default=0)


def arrows() -> set[tuple[str, str]]:
    """Imports between rooms, without those that follow from a chain of other arrows."""
    graph = {name: room.imports for name, room in rooms().items()}

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset().union(*({other} | below(other) for other in graph[name]))

    return {
        (name, other)
        for name, imports in graph.items()
        for other in imports
        if not any(other in below(between) for between in imports - {other})
    }


def _label(module: str, room: str) -> str:
    if room == LIBRARY:
        return module.removesuffix(SUFFIX)
    if room == DOOR:
        return {"clipfsar": "import clipfsar", "clipfsar.cli": "clipfsar COMMAND"}.get(module, "python -m clipfsar")
    return module.removeprefix(f"{room.replace('/', '.')}.").removeprefix("clipfsar.")


def _lines(words: list[str], width: float) -> list[str]:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        if lines[-1] and len(longer) * CHARACTER > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw() -> str:
    """The picture as an SVG element. The style sheet of the page sets its colours."""
    floors: dict[int, list[Room]] = {}
    for room in rooms().values():
        floors.setdefault(floor_of(room.name), []).append(room)
    boxes, shapes, top = {}, [], MARGIN
    for _, row in sorted(floors.items(), reverse=True):
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        texts = [_lines([_label(module, room.name) for module in room.modules], width - 24) for room in row]
        height = 38 + LINE * max(map(len, texts))
        for number, (room, lines) in enumerate(zip(row, texts, strict=True)):
            left = MARGIN + number * (width + GAP)
            boxes[room.name] = (left, top, width, height)
            shapes.append(_box(room.name, lines, *boxes[room.name]))
        top += height + FLOOR_GAP
    lines = [_arrow(boxes[upper], boxes[lower]) for upper, lower in sorted(arrows())]
    height = top - FLOOR_GAP + MARGIN
    return "\n".join(
        [
            f'<svg class="house" viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">',
            "<title>The rooms of the project; an arrow means: imports</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            *lines,
            *shapes,
            "</svg>",
        ]
    )


def _box(name: str, lines: list[str], left: float, top: float, width: float, height: float) -> str:
    text = "".join(
        f'<text x="{left + 12:.0f}" y="{top + 44 + LINE * number:.0f}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="8"/>'
        f'<text class="name" x="{left + 12:.0f}" y="{top + 24:.0f}">{escape(name)}</text>{text}'
    )


def _arrow(upper: tuple[float, ...], lower: tuple[float, ...]) -> str:
    """An arrow from the lower edge of a room to the upper edge of a room below; vertical if they overlap."""
    start, end = upper[0] + upper[2] / 2, lower[0] + lower[2] / 2
    low, high = max(upper[0], lower[0]) + 20, min(upper[0] + upper[2], lower[0] + lower[2]) - 20
    if low <= high:
        start = end = min(max(start, low), high)
    return f'<path d="M{start:.0f} {upper[1] + upper[3]:.0f} L{end:.0f} {lower[1]:.0f}" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw() + "\n", encoding="utf-8")

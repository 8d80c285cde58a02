"""Pictures and curves of the report: SVG as text, PNG as data."""

import base64
import io
from html import escape
from typing import Dict, List, Sequence, Tuple

import torch

COLOURS = ("#1f5fa8", "#c2571a", "#3a8a3a", "#8a3a86", "#8a7a1a", "#2a8a8a", "#a83a3a", "#666666")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 64, 36, 12, 150


def curves(lines: Dict[str, Sequence[Tuple[float, float]]], across: str, up: str) -> str:
    """Lines by name, each a list of (x, y); y on a logarithmic axis where all are positive and spread tenfold."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    xs, ys = zip(*points)
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    low, high = (min(ys), max(ys)) if logarithmic else (min(0.0, *ys), max(ys))
    span = (max(xs) - min(xs)) or 1.0

    def place(x: float, y: float) -> Tuple[float, float]:
        right, upward = (x - min(xs)) / span, _fraction(y, low, high, logarithmic)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - upward * (HEIGHT - BOTTOM - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif" font-size="11">']
    for i in range(5):
        y = low * (high / low) ** (i / 4) if logarithmic else low + (high - low) * i / 4
        _, at = place(min(xs), y)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x in (min(xs), max(xs)):
        at, _ = place(x, low)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text transform="translate(12 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="2" fill="{}"/>'.format(*place(x, y), colour) for x, y in line]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 14 * (i + 1)}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _fraction(y: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        low, high, y = (torch.tensor([low, high, y]).log()).tolist()
    return (y - low) / ((high - low) or 1.0)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def sheet(clips: List[torch.Tensor], frames: int = 5) -> str:
    """An <img> of clips [3, T, height, width] in [-1, 1], one below the other, `frames` of each in a row."""
    from PIL import Image

    rows = []
    for clip in clips:
        picked = clip[:, torch.linspace(0, clip.shape[1] - 1, min(frames, clip.shape[1])).round().long()]
        rows.append(torch.cat(list(picked.unbind(1)), dim=-1))
    pixels = (torch.cat(rows, dim=-2).clamp(-1, 1) + 1).mul(127.5).round().byte().permute(1, 2, 0)
    data = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(data, "PNG", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'

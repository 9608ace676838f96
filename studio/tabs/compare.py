"""Compare: one prompt, base on the left and tuned on the right, both streaming from one resident 4-bit base."""

from collections.abc import Iterator
from html import escape, unescape
from typing import Any

import gradio as gr

from finetune.config import TrainConfig
from finetune.prompt import Turn
from finetune.run import find_run, list_runs
from inference.columns import BASE
from inference.engine import Engine, Update
from inference.sampling import Sampling
from studio import view
from studio.form import offer_tuned

DEVICE = "device"  # the concurrency id of everything that runs the model


def build(page: gr.Blocks, engine: Engine) -> None:
    """Wire the tab."""
    with gr.Row():
        run = gr.Dropdown(
            [], label="Tuned model", info="The run whose adapter answers on the right.", elem_id="compare-run", scale=2
        )
        side = gr.Dropdown(
            ["tuned"],
            value="tuned",
            label="On the right",
            info="Its adapter, one of its checkpoints, or its merged model.",
            elem_id="compare-side",
        )
        strength = gr.Slider(
            0,
            1.5,
            1,
            step=0.05,
            label="Strength",
            info="What the adapter's output is multiplied by: 0 is the base, 1 as it was trained.",
            elem_id="strength",
        )
    with gr.Row(equal_height=True):
        with gr.Column(min_width=320):
            base_chat = _chat("Base", "base")
            base_figures = gr.Markdown(elem_id="base-figures", elem_classes="figures")
        with gr.Column(min_width=320):
            tuned_chat = _chat("Tuned", "tuned")
            tuned_figures = gr.Markdown(elem_id="tuned-figures", elem_classes="figures")
    with gr.Row():
        prompt = gr.Textbox(
            show_label=False,
            placeholder="Ask both the same thing",
            scale=8,
            autofocus=True,
            elem_id="prompt",
            max_lines=8,
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=96, elem_id="send")
        stop = gr.Button("Stop", scale=1, min_width=96, elem_id="stop")
        clear = gr.Button("Clear", scale=1, min_width=96, elem_id="clear")
    with gr.Accordion("Sampling", open=False), gr.Row():
        temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 always takes the likeliest token.")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Draw from the likeliest tokens that reach this.")
        length = gr.Slider(16, 1024, 192, step=16, label="Longest answer, in tokens")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)

    outputs = [base_chat, tuned_chat, base_figures, tuned_figures, prompt]
    answering = gr.on(
        [send.click, prompt.submit],
        _answerer(engine),
        [prompt, base_chat, tuned_chat, run, side, strength, temperature, top_p, length, seed],
        outputs,
        concurrency_id=DEVICE,
        concurrency_limit=1,
        api_name="compare",
        show_progress="hidden",
    )
    stop.click(None, cancels=answering, queue=False)
    clear.click(lambda: ([], [], "", ""), None, outputs[:4], cancels=answering, queue=False, api_visibility="private")
    for chosen in (run.input, side.input, strength.release):
        chosen(lambda: ([], [], "", ""), None, outputs[:4], cancels=answering, queue=False, api_visibility="private")
    run.input(lambda: gr.Dropdown(["tuned"], value="tuned"), None, side, api_visibility="private")
    side.focus(_offer_sides, [run, side], side, show_progress="hidden", api_visibility="private")
    page.load(offer_tuned, None, run, api_visibility="private")
    run.focus(offer_tuned, run, run, show_progress="hidden", api_visibility="private")


def _offer_sides(run_id: str | None, chosen: str) -> Any:
    """What a run can put on the right."""
    return gr.Dropdown(view.side_choices(find_run(run_id)) if run_id else ["tuned"], value=chosen)


def _chat(label: str, name: str) -> gr.Chatbot:
    """Answers are text. Without Markdown, a Chatbot still takes what it is given for HTML: so all of it is escaped."""
    return gr.Chatbot(
        label=label, height=440, elem_id=f"{name}-chat", render_markdown=False, sanitize_html=True, buttons=["copy"]
    )


def _answerer(engine: Engine) -> Any:
    def answer(
        prompt: str,
        base_chat: list[Any],
        tuned_chat: list[Any],
        run_id: str | None,
        side: str,
        strength: float,
        temperature: float,
        top_p: float,
        length: float,
        seed: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Both answers to a prompt, streamed: the two conversations, the figures under each, the emptied prompt."""
        if not prompt.strip():
            raise gr.Error("Write a prompt first.")
        chats = [[*chat, {"role": "user", "content": escape(prompt, quote=False)}] for chat in (base_chat, tuned_chat)]
        try:
            sampling = Sampling(temperature=temperature, top_p=top_p, seed=int(seed))
            for answers, message, _ in _stream(engine, run_id, side, strength, chats, sampling, int(length)):
                if not answers:
                    yield (*chats, message, message, "")
                    continue
                shown = [
                    [*chat, {"role": "assistant", "content": escape(a.text, quote=False)}]
                    for chat, a in zip(chats, answers, strict=False)
                ]
                lines = [" · ".join(filter(None, (view.figures(a), message))) for a in answers]
                if len(answers) == 1:
                    shown.append([])
                    lines.append("No tuned model yet: make one under Fine-tune.")
                yield (*shown, *lines, "")
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error

    return answer


def _stream(
    engine: Engine,
    run_id: str | None,
    side: str,
    strength: float,
    chats: list[list[Any]],
    sampling: Sampling,
    length: int,
) -> Iterator[Update]:
    """Base and what is chosen of a run; base alone of the default model where there is no run yet."""
    histories = [_turns(chat) for chat in chats]
    if run_id is None:  # asked before the page had filled its list: the newest is what it would have chosen
        run_id = next((run.id for run in list_runs() if run.has_adapter()), None)
    if run_id is None:
        model = TrainConfig.model_fields["model"].default
        yield from engine.compare(model, None, "auto", [BASE], histories[:1], sampling, length)
        return
    run = find_run(run_id)
    config, facts = run.config()["config"], run.facts()
    columns = [BASE, view.side_column(run, side, strength)]
    yield from engine.compare(
        config["model"],
        config["revision"],
        facts["template"],
        columns,
        histories,
        sampling,
        length,
        facts["model_sha256"],
    )


def _turns(chat: list[Any]) -> list[Turn]:
    """A Chatbot's messages as turns, the last without a response."""
    turns: list[Turn] = []
    for message in chat:
        text = _text(message["content"])
        if message["role"] == "user":
            turns.append(Turn(text))
        elif turns:
            turns[-1] = turns[-1]._replace(response=text)
    return turns


def _text(content: Any) -> str:
    """What was said, unescaped; Gradio hands a message over as a string or as a list of blocks."""
    blocks = [content] if isinstance(content, str) else content
    return unescape("\n".join(block["text"] if isinstance(block, dict) else str(block) for block in blocks))

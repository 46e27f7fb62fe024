"""The layout of the page, and what its buttons do. Only this module knows gradio."""

import logging
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from retipair.data.dataset import PairRecord, load_pair
from retipair.data.review import Decision
from retipair.interfaces.app import fragments
from retipair.interfaces.app.comparing import compare_pair, file_uri
from retipair.interfaces.app.drawing import MAX_PAIRS
from retipair.interfaces.app.reviewing import ReviewedFolder
from retipair.interfaces.app.scoring import nearest_to
from retipair.interfaces.app.words import html_lang
from retipair.interfaces.app.workbench import Workbench, review_commands
from retipair.runtime.errors import FileError, UserError, is_out_of_memory

STEPS = 50
_FOLDER = Path(__file__).parent
_SYSTEM_FONTS = [gr.themes.Font(name) for name in ("system-ui", "Noto Sans CJK SC", "sans-serif")]
_SYSTEM_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_DRAWING: dict[str, Any] = {**_PRIVATE, "concurrency_limit": 1, "concurrency_id": "drawing"}


def _html(value: str = "", **settings: Any) -> gr.HTML:
    """Return a part of the page in HTML, which page.css styles."""
    return gr.HTML(value, apply_default_css=False, **settings)


class Page:
    """The page as gradio blocks."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._words = bench, bench.words
        with gr.Blocks(title=self._words.title, analytics_enabled=False) as self.blocks:
            _html(f"<h2>{escape(self._words.title)}</h2>{fragments.note(self._words.research_only)}")
            _html(fragments.comparison_buttons(self._words))
            with gr.Tab(self._words.pairs_tab):
                self._review_tab()
            with gr.Tab(self._words.draw_tab):
                self._draw_tab()
            with gr.Tab(self._words.angiogram_tab):
                self._angiogram_tab()

    def launch(self, port: int) -> None:
        """Serve the page on 127.0.0.1, and return at once."""
        style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        self.blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            inbrowser=False,
            quiet=True,
            footer_links=[],
            run_history=False,  # it would keep images of patients in the browser
            allowed_paths=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO),
            head=f"<style>{style}</style>",  # `css` would be scoped, so that rules for `body` would have no effect
            js=script.replace("PAGE_LANGUAGE", html_lang(self._words)),
        )

    # Compare and review

    def _review_tab(self) -> None:
        words = self._words
        position = gr.State(0)
        with gr.Row(equal_height=True):
            folder = gr.Textbox(label=words.folder, info=words.folder_hint, scale=5, elem_id="folder")
            opening = gr.Button(words.open, elem_id="open", scale=1, min_width=90)
        status = _html(elem_id="status")
        with gr.Group(visible=False) as review, gr.Row(elem_classes="review-buttons"):
            previous, back, reject, keep, following = (
                gr.Button(getattr(words, name), elem_id=name, variant=variant, min_width=64)
                for name, variant in (
                    ("previous", "secondary"),
                    ("back", "secondary"),
                    ("reject", "stop"),
                    ("keep", "primary"),
                    ("next", "secondary"),
                )
            )
        figure, commands = _html(elem_id="pair"), _html()
        shown = [position, status, review, figure, commands]
        for button, action in (
            (previous, self._move(-1)),
            (following, self._move(1)),
            (keep, self._decide("keep")),
            (reject, self._decide("reject")),
            (back, lambda place: self._act(place, lambda folder: folder.take_back(place))),
        ):
            button.click(action, position, shown, show_progress="hidden", **_PRIVATE)
        for event in (opening.click, folder.submit):
            event(self._open, folder, shown, show_progress="minimal", **_PRIVATE)
        self.blocks.load(self._restore, None, [folder, *shown], show_progress="hidden", **_PRIVATE)

    def _restore(self) -> tuple[Any, ...]:
        """Show the open folder, at the first pair without a decision, after the page was loaded."""
        reviewed = self._bench.reviewed
        return (str(reviewed.folder) if reviewed else "", *self._act(0, lambda folder: folder.start()))

    def _open(self, folder: str) -> Iterator[tuple[Any, ...]]:
        yield (0, fragments.note(self._words.reading), gr.update(visible=False), "", "")
        try:
            self._bench.open(Path(folder.strip()).expanduser())
        except Exception as error:
            yield (0, self._problem(error), gr.update(visible=False), "", "")
        else:
            yield self._act(0, lambda reviewed: reviewed.start())

    def _move(self, step: int) -> Any:
        def move(place: int) -> tuple[Any, ...]:
            return self._act(place, lambda folder: min(max(place + step, 0), len(folder.pairs) - 1))

        return move

    def _decide(self, decision: Decision) -> Any:
        def decide(place: int) -> tuple[Any, ...]:
            return self._act(place, lambda folder: folder.decide(place, decision))

        return decide

    def _act(self, place: int, action: Any) -> tuple[Any, ...]:
        """Do something with the open folder, which returns a position, and show the pair at this position."""
        reviewed = self._bench.reviewed
        if reviewed is None:
            return (0, fragments.note(self._words.no_folder), gr.update(visible=False), "", "")
        try:
            position = min(action(reviewed), len(reviewed.pairs) - 1)
            return (position, *self._view(reviewed, position))
        except Exception as error:
            return (place, self._problem(error), gr.update(visible=True), "", "")

    def _view(self, reviewed: ReviewedFolder, position: int) -> tuple[Any, ...]:
        words, pair = self._words, reviewed.pairs[position]
        figure = fragments.pair_figure(words, compare_pair(pair.record), pair.record.id)
        searched = fragments.concerns_copies(pair.record)
        scores = fragments.scores(words, pair.consistency, reviewed.references, pair.nearest, searched)
        commands = fragments.command(words, *review_commands(reviewed), title=words.heeded)
        hints = fragments.note(words.keys) + fragments.note(words.order)
        opened = fragments.command(words, self._bench.command())
        status = fragments.review_status(words, reviewed, position)
        return (status, gr.update(visible=True), figure + scores, hints + commands + opened)

    # Draw

    def _draw_tab(self) -> None:
        words = self._words
        if not self._bench.drawer.is_ready:
            _html(fragments.note(words.no_adapter))
            return
        with gr.Row():
            amount = gr.Slider(1, MAX_PAIRS, value=4, step=1, label=words.amount, elem_id="amount", min_width=140)
            seed, steps = self._seed_and_steps("pairs")
        draw, stop = self._draw_buttons("pairs")
        status = _html(elem_id="pairs-status")
        figures = [_html(elem_classes="drawn-pair", visible=False) for _ in range(MAX_PAIRS)]
        commands = _html(elem_id="pairs-command")

        def draw_pairs(amount: float, seed: float, steps: float) -> Iterator[dict[Any, Any]]:
            count = int(amount)
            hidden = {figure: gr.update(value="", visible=False) for figure in figures}
            yield {status: fragments.note(words.loading), commands: "", **hidden}
            given = (count, int(seed), int(steps))
            pairs, line = self._bench.drawer.pairs(*given), self._bench.drawer.pairs_command(*given)
            yield {commands: fragments.note(words.temporary) + fragments.command(words, line)}
            yield from self._show_pairs(pairs, count, status, figures, f"pair_{int(seed)}")

        running = draw.click(draw_pairs, [amount, seed, steps], [status, commands, *figures], **_DRAWING)
        stop.click(None, cancels=running, **_PRIVATE)

    def _angiogram_tab(self) -> None:
        words = self._words
        if not self._bench.drawer.is_ready:
            _html(fragments.note(words.no_adapter))
            return
        _html(fragments.note(words.patient_data))
        upload = gr.File(label=words.photograph, type="filepath", elem_id="photograph", height=140)
        _html(fragments.note(words.photograph_hint))
        with gr.Row():
            amount = gr.Slider(1, MAX_PAIRS, value=1, step=1, label=words.angiograms, min_width=140)
            seed, steps = self._seed_and_steps("angiograms")
        draw, stop = self._draw_buttons("angiograms")
        status = _html(elem_id="angiograms-status")
        figures = [_html(elem_classes="drawn-pair", visible=False) for _ in range(MAX_PAIRS)]
        commands = _html(elem_id="angiograms-command")

        def draw_angiograms(path: str | None, amount: float, seed: float, steps: float) -> Iterator[dict[Any, Any]]:
            hidden = {figure: gr.update(value="", visible=False) for figure in figures}
            yield {status: fragments.note(words.loading), commands: "", **hidden}
            if path is None:
                yield {status: fragments.note(words.no_photograph, "warning")}
                return
            given = (Path(path), int(amount), int(seed), int(steps))
            pairs, line = self._bench.drawer.angiograms(*given), self._bench.drawer.angiograms_command(*given)
            yield {commands: fragments.note(words.temporary) + fragments.command(words, line)}
            yield from self._show_pairs(pairs, int(amount), status, figures, f"{Path(path).stem}_{int(seed)}")

        inputs = [upload, amount, seed, steps]
        running = draw.click(draw_angiograms, inputs, [status, commands, *figures], **_DRAWING)
        stop.click(None, cancels=running, **_PRIVATE)

    def _seed_and_steps(self, name: str) -> tuple[gr.Number, gr.Slider]:
        words = self._words
        seed = gr.Number(0, label=words.seed, precision=0, minimum=0, elem_id=f"{name}-seed", min_width=120)
        return seed, gr.Slider(1, 100, value=STEPS, step=1, label=words.steps, elem_id=f"{name}-steps", min_width=140)

    def _draw_buttons(self, name: str) -> tuple[gr.Button, gr.Button]:
        with gr.Row():
            draw = gr.Button(self._words.draw, variant="primary", elem_id=f"{name}-draw", min_width=100)
            return draw, gr.Button(self._words.stop, elem_id=f"{name}-stop", min_width=100)

    def _show_pairs(
        self, pairs: Iterator[tuple[PairRecord, float]], total: int, status: Any, figures: list[Any], name: str
    ) -> Iterator[dict[Any, Any]]:
        """Show each pair as soon as it is drawn, and how many there are, or what went wrong."""
        words = self._words
        try:
            for count, (record, consistency) in enumerate(pairs, start=1):
                text = words.finished if count == total else words.unfinished
                shown = self._figure(record, consistency, f"{name}_{count}")
                said = fragments.note(text.format(count=count, total=total))
                yield {status: said, figures[count - 1]: gr.update(value=shown, visible=True)}
        except Exception as error:
            yield {status: self._problem(error), **{figure: gr.update(visible=False) for figure in figures}}

    def _figure(self, record: PairRecord, consistency: float, name: str) -> str:
        words, references = self._words, self._bench.references
        searched = fragments.concerns_copies(record)
        nearest = nearest_to(load_pair(record), references) if searched else None
        in_photograph = record.fa.with_name("fa_in_source.png")
        more = {"fa_in_photograph": file_uri(in_photograph)} if in_photograph.is_file() else {}
        figure = fragments.pair_figure(words, compare_pair(record), name, more)
        return figure + fragments.scores(words, consistency, references, nearest, searched)

    def _problem(self, error: Exception) -> str:
        """Return the message for an error. Temporary paths of uploads are shortened to the name of the file."""
        words = self._words
        if isinstance(error, FileError) and self._bench.is_temporary(error.path):
            return fragments.note(f"{words.error} {error.path.name}: {error.problem}", "warning")
        if isinstance(error, UserError):
            return fragments.note(f"{words.error} {error}", "warning")
        if is_out_of_memory(error):
            return fragments.note(words.out_of_memory, "warning")
        logging.getLogger("retipair").error("internal error in the page", exc_info=error)
        return fragments.note(words.internal.format(kind=f"{type(error).__name__}: {error}"), "warning")

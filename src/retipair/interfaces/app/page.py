"""The layout of the page, and what its buttons do. Only this module knows gradio."""

import logging
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from retipair.config import GenerateConfig
from retipair.data.dataset import PairRecord, load_pair
from retipair.interfaces.app import fragments
from retipair.interfaces.app.comparing import compare_pair, file_uri
from retipair.interfaces.app.drawing import MAX_PAIRS
from retipair.interfaces.app.reviewing import ReviewedFolder
from retipair.interfaces.app.scoring import nearest_to
from retipair.interfaces.app.words import html_lang
from retipair.interfaces.app.workbench import Workbench, typed_path
from retipair.runtime.errors import FileError, UserError, is_out_of_memory

_FOLDER = Path(__file__).parent
_SYSTEM_FONTS = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
_SYSTEM_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_DRAWING: dict[str, Any] = {**_PRIVATE, "concurrency_limit": 1, "concurrency_id": "drawing"}
_WITH_NAME = "(file, name, ...others) => [file, file ? file.orig_name : name, ...others]"
"""Passes the name of an uploaded file on the user's disk. gradio removes some characters from the name in its path."""
_OWN_HOSTS = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
"""Refuses requests for other host names: a web page elsewhere could let a name of its own point to this machine."""

Place = tuple[str, int, str | None]
"""What a window of the browser shows: the folder, the position of a pair in it, and the id of this pair."""
Shown = tuple[Any, ...]
"""New values of the place, the status, the buttons, the figure and the commands of the review."""
Updates = dict[Any, Any]


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
            app_kwargs={"middleware": [_OWN_HOSTS]},
            theme=gr.themes.Default(font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO),
            head=f"<style>{style}</style>",  # `css` would be scoped, so that rules for `body` would have no effect
            js=script.replace("PAGE_LANGUAGE", html_lang(self._words)),
        )

    # Review

    def _review_tab(self) -> None:
        words = self._words
        place = gr.State(("", 0, ""))
        with gr.Row(equal_height=True):
            folder = gr.Textbox(label=words.folder, info=words.folder_hint, scale=5, elem_id="folder")
            opening = gr.Button(words.open, elem_id="open", scale=1, min_width=90)
        status = _html(elem_id="status")
        with gr.Group(visible=False) as review, gr.Row(elem_classes="review-buttons"):
            buttons = {name: self._review_button(name) for name in ("previous", "back", "reject", "keep", "next")}
        figure, commands = _html(elem_id="pair"), _html()
        shown = [place, status, review, figure, commands]
        actions: dict[str, Callable[[ReviewedFolder, int], int]] = {
            "previous": lambda reviewed, position: max(position - 1, 0),
            "next": lambda reviewed, position: min(position + 1, len(reviewed.pairs) - 1),
            "keep": lambda reviewed, position: reviewed.decide(position, "keep"),
            "reject": lambda reviewed, position: reviewed.decide(position, "reject"),
            "back": ReviewedFolder.take_back,
        }
        for name, action in actions.items():
            buttons[name].click(self._event(action), place, shown, show_progress="hidden", **_PRIVATE)
        for event in (opening.click, folder.submit):
            event(self._open, folder, shown, show_progress="minimal", **_PRIVATE)
        self.blocks.load(self._restore, None, [folder, *shown], show_progress="hidden", **_PRIVATE)

    def _review_button(self, name: str) -> gr.Button:
        variants: dict[str, Any] = {"reject": "stop", "keep": "primary"}
        text = getattr(self._words, name)
        return gr.Button(text, elem_id=name, variant=variants.get(name, "secondary"), min_width=64)

    def _restore(self) -> Iterator[Shown]:
        """Show the folder that was opened last, after the page was loaded."""
        last = self._bench.last
        name = str(last.folder) if last else ""
        if last and last.is_outdated:
            yield (name, *self._only(self._words.reading))
        yield (name, *self._show_start(last))

    def _show_start(self, reviewed: ReviewedFolder | None) -> Shown:
        """Show a folder at its first pair without a decision. Open it again if it has changed since it was opened."""
        if reviewed is None:
            return self._only(self._words.no_folder)
        if reviewed.is_outdated:
            return self._show_opened(reviewed.folder)
        return self._show(reviewed, reviewed.start)

    def _open(self, folder: str) -> Iterator[Shown]:
        yield self._only(self._words.reading)
        yield self._show_opened(folder)

    def _show_opened(self, folder: Path | str) -> Shown:
        """Open a folder, and show its first pair without a decision, or the problem.

        folder: a path, or what a user typed.
        """
        try:
            reviewed = self._bench.open(folder if isinstance(folder, Path) else typed_path(folder))
        except Exception as error:
            return (("", 0, ""), self._problem(error), gr.update(visible=False), "", "")
        return self._show(reviewed, reviewed.start)

    def _only(self, text: str) -> Shown:
        """Show a text and no pair."""
        return (("", 0, ""), fragments.note(text), gr.update(visible=False), "", "")

    def _event(self, action: Callable[[ReviewedFolder, int], int]) -> Callable[[Place], Shown]:
        """Return the function of a button: act on the pair that is shown, and show the pair at the new position.

        If the folder has changed, or if the pair now has another position because the folder was opened again, it only
        shows the first pair without a decision; in a window that was loaded from an earlier server, it shows the
        folder that was opened last.
        """

        def act(place: Place) -> Shown:
            folder, position, id = place
            reviewed = self._bench.opened.get(Path(folder)) if folder else None
            if reviewed is None or reviewed.id_at(position) != id or reviewed.is_outdated:
                return self._show_start(reviewed or self._bench.last)
            return self._show(reviewed, lambda: action(reviewed, position), position)

        return act

    def _show(self, reviewed: ReviewedFolder, act: Callable[[], int], position: int = 0) -> Shown:
        """Act, and show the pair at the position that `act` returns.

        If this fails, the message is shown instead. A pair that cannot be read can then be rejected, or passed over.
        """
        try:
            position = act()
            view = self._view(reviewed, position)
        except Exception as error:
            view = (self._problem(error), gr.update(visible=True), "", "")
        return ((str(reviewed.folder), position, reviewed.id_at(position)), *view)

    def _view(self, reviewed: ReviewedFolder, position: int) -> Shown:
        words, pair = self._words, reviewed.pairs[position]
        status = fragments.review_status(words, reviewed, position)
        figure = fragments.pair_figure(words, compare_pair(pair.record), pair.record.id, pair.record.modalities)
        searched = fragments.can_be_copy(pair.record)
        scores = fragments.scores(words, pair.consistency, reviewed.references, pair.nearest, searched)
        hints = fragments.note(words.keys) + fragments.note(words.order)
        using = fragments.command(words, *self._bench.review_commands(reviewed), title=words.used_by)
        opening = fragments.command(words, self._bench.command(reviewed))
        return (status, gr.update(visible=True), figure + scores, hints + using + opening)

    # Draw

    def _draw_tab(self) -> None:
        words, drawer = self._words, self._bench.drawer
        if not drawer.is_ready:
            _html(fragments.note(words.no_adapter))
            return
        self._show_warnings()
        with gr.Row():
            amount = gr.Slider(1, MAX_PAIRS, value=4, step=1, label=words.amount, elem_id="amount", min_width=140)
            seed, steps = self._seed_and_steps("pairs")

        def draw(amount: float, seed: float | None, steps: float, request: gr.Request) -> Iterator[Updates]:
            given = (int(amount), int(seed or 0), int(steps))
            pairs = drawer.pairs(*given, request.session_hash)
            yield from output(pairs, given[0], f"pair_{given[1]}", drawer.pairs_command(*given))

        output = self._drawing("pairs", draw, [amount, seed, steps])

    def _angiogram_tab(self) -> None:
        words, drawer = self._words, self._bench.drawer
        if not drawer.is_ready:
            _html(fragments.note(words.no_adapter))
            return
        self._show_warnings()
        _html(fragments.note(words.patient_data))
        upload = gr.File(label=words.photograph, type="filepath", elem_id="photograph", height=140)
        original = gr.Textbox(visible=False)  # the name of the file, which `_WITH_NAME` passes
        _html(fragments.note(words.photograph_hint))
        with gr.Row():
            amount = gr.Slider(1, MAX_PAIRS, value=1, step=1, label=words.angiograms, min_width=140)
            seed, steps = self._seed_and_steps("angiograms")

        def draw(
            path: str | None, name: str, amount: float, seed: float | None, steps: float, request: gr.Request
        ) -> Iterator[Updates]:
            if path is None:
                yield from output(None, 0, "", "")
                return
            given = (int(amount), int(seed or 0), int(steps))
            pairs = drawer.angiograms(Path(path), *given, request.session_hash)
            command = drawer.angiograms_command(name, *given)
            yield from output(pairs, given[0], f"{Path(path).stem}_{given[1]}", command)

        output = self._drawing("angiograms", draw, [upload, original, amount, seed, steps], _WITH_NAME)

    def _show_warnings(self) -> None:
        """Show the warnings about the adapter, for example that it is untrained."""
        for warning in self._bench.warnings:
            _html(fragments.note(warning, "warning"))

    def _seed_and_steps(self, name: str) -> tuple[gr.Number, gr.Slider]:
        words = self._words
        seed = gr.Number(0, label=words.seed, precision=0, minimum=0, elem_id=f"{name}-seed", min_width=120)
        steps = gr.Slider(
            1, 100, value=GenerateConfig.steps, step=1, label=words.steps, elem_id=f"{name}-steps", min_width=140
        )
        return seed, steps

    def _drawing(
        self, name: str, draw: Callable[..., Iterator[Updates]], inputs: list[Any], js: str | None = None
    ) -> Callable[..., Any]:
        """Add the buttons of a tab that draws, and the places for what is drawn.

        draw: the generator function that the button calls with the values of `inputs`. It passes its pairs to the
        function that is returned here, and yields the updates of the page that this function yields.
        js: a JavaScript function that changes the values of `inputs` in the browser.
        Returns this function. Its arguments are the pairs that a drawer yields (None if no photograph was chosen),
        their number, the beginning of the names of downloaded files, and the command.
        """
        words = self._words
        with gr.Row():
            start = gr.Button(words.draw, variant="primary", elem_id=f"{name}-draw", min_width=100)
            stop = gr.Button(words.stop, elem_id=f"{name}-stop", min_width=100)
        status = _html(elem_id=f"{name}-status")
        figures = [_html(elem_classes="drawn-pair", visible=False) for _ in range(MAX_PAIRS)]
        commands = _html(elem_id=f"{name}-command")

        def output(pairs: Any, total: int, file_name: str, command: str) -> Iterator[Updates]:
            hidden = {figure: gr.update(value="", visible=False) for figure in figures}
            if pairs is None:
                yield {status: fragments.note(words.no_photograph, "warning"), commands: "", **hidden}
                return
            shown = fragments.note(words.temporary) + fragments.command(words, command)
            yield {status: fragments.note(words.loading), commands: shown, **hidden}
            for number, said, figure in self._messages(pairs, total, file_name):
                yield {status: said, **({figures[number]: gr.update(value=figure, visible=True)} if figure else {})}

        def cancel(request: gr.Request) -> None:
            self._bench.drawer.cancel(request.session_hash)

        outputs = [status, commands, *figures]
        start.click(draw, inputs, outputs, js=js, show_progress="minimal", **_DRAWING)
        stop.click(cancel, None, None, **_PRIVATE)
        return output

    def _messages(
        self, pairs: Iterator[tuple[PairRecord, float]], total: int, name: str
    ) -> Iterator[tuple[int, str, str]]:
        """Yield (position, message, figure) for each pair as soon as it is drawn.

        If the drawing ends early, the last message says why, and its figure is "".
        """
        words, count = self._words, 0
        try:
            for record, consistency in pairs:
                count += 1
                text = words.finished if count == total else words.unfinished
                figure = self._figure(record, consistency, f"{name}_{count}")
                yield count - 1, fragments.note(text.format(count=count, total=total)), figure
            if count < total:
                yield count, fragments.note(words.stopped.format(count=count, total=total)), ""
        except Exception as error:
            yield count, self._problem(error), ""

    def _figure(self, record: PairRecord, consistency: float, name: str) -> str:
        words, references = self._words, self._bench.references
        searched = fragments.can_be_copy(record)
        nearest = nearest_to(load_pair(record), references) if searched else None
        in_photograph = record.fa.with_name("fa_in_source.png")
        more = {"fa_in_photograph": file_uri(in_photograph)} if in_photograph.is_file() else {}
        figure = fragments.pair_figure(words, compare_pair(record), name, record.modalities, more)
        return figure + fragments.scores(words, consistency, references, nearest, searched)

    def _problem(self, error: Exception) -> str:
        """Return the message for an error. The path of an upload is shortened to the name of the file."""
        words = self._words
        if isinstance(error, FileError) and self._bench.is_temporary(error.path):
            return fragments.note(f"{words.error} {error.path.name}: {error.problem}", "warning")
        if isinstance(error, UserError):
            return fragments.note(f"{words.error} {error}", "warning")
        if is_out_of_memory(error):
            return fragments.note(words.out_of_memory, "warning")
        logging.getLogger("retipair").error("internal error in the page", exc_info=error)
        return fragments.note(words.internal.format(kind=f"{type(error).__name__}: {error}"), "warning")

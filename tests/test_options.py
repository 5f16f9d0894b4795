from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from idefics_cli.cli.options import PasswordFile, checked_pages, from_settings
from idefics_cli.config import (
    Format,
    MessageSettings,
    ModelSettings,
    Option,
    OutputSettings,
    PageSettings,
    Panel,
    QuestionSettings,
    Split,
)
from idefics_cli.errors import UsageError

GIVEN: list[object] = []


@from_settings(without=("quantize", "root"), defaults={"max_new_tokens": 16})
def command(
    pages: PageSettings,
    model: ModelSettings,
    asked: QuestionSettings,
    output: Callable[..., OutputSettings],
    messages: MessageSettings,
    names: Annotated[list[str] | None, typer.Argument()] = None,
    dry_run: Annotated[bool, Option("Dry.", Panel.COMMON)] = False,
    password_file: PasswordFile = None,
) -> None:
    """Do it."""
    GIVEN[:] = [pages, model, asked, output, messages, names, dry_run, password_file]


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(command)
    return made


def run(*arguments: str, env: dict[str, str] | None = None) -> list[object]:
    done = CliRunner().invoke(app(), list(arguments), env=env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return list(GIVEN)


def test_without_options_the_records_have_their_own_defaults() -> None:
    pages, model, asked, output, messages, names, dry_run, password_file = run()
    assert (pages, asked, messages) == (PageSettings(), QuestionSettings(), MessageSettings())
    assert model == ModelSettings(max_new_tokens=16)
    assert callable(output)
    assert output(path=Path("x"), format=Format.CSV) == OutputSettings(Path("x"))
    assert (names or None, dry_run, password_file) == (None, False, None)


def test_options_reach_their_fields() -> None:
    pages, model, asked, output, messages, names, dry_run, _ = run(
        *("a.pdf", "b.pdf", "--pages", "1-3", "--split", "never", "--page-timeout", "2.5", "--workers", "3"),
        *("-m", "tiny", "--batch-size", "auto", "--column", "document=file", "--column", "id=nr", "--limit", "7"),
        *("--resume", "--retry-failed", "all", "-v", "--dry-run"),
    )
    assert pages == PageSettings("1-3", split=Split.NEVER, page_timeout=2.5, workers=3)
    assert model == ModelSettings("tiny", max_new_tokens=16)
    assert asked == QuestionSettings(("document=file", "id=nr"), limit=7)
    assert callable(output)
    assert output(path=Path("x")).retry_failed == "all"
    assert (messages, names, dry_run) == (MessageSettings(verbose=True), ["a.pdf", "b.pdf"], True)


def test_variables_stand_for_options() -> None:
    variables = {"IDEFICS_CLI_PASSWORD": "secret", "IDEFICS_CLI_MODEL": "tiny"}
    pages, model, *_ = run(env=variables)
    assert pages == PageSettings(password="secret")
    assert model == ModelSettings("tiny", max_new_tokens=16)


@pytest.mark.parametrize(
    "arguments",
    [("--workers", "x"), ("--batch-size", "0"), ("--prompt", "x"), ("--page-timeout", "0"), ("--limit", "0")],
)
def test_what_a_parser_or_a_record_refuses_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        run(*arguments)


@pytest.mark.parametrize("option", ["--batch-size", "--workers"])
def test_what_a_parser_refuses_names_the_option_once(option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}[: ](?!.*{option})"):
        run(option, "letter.pdf")


@pytest.mark.parametrize(
    "option", ["--no-resume", "--no-dry-run", "--quantize", "--root", "--split-em", "--ignore-eos"]
)
def test_what_is_no_option_is_refused(option: str) -> None:
    done = CliRunner().invoke(app(), [option])
    assert done.exit_code == 2


def test_help_shows_panels_with_the_common_options_first() -> None:
    said = CliRunner().invoke(app(), ["--help"], env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}).output
    panels = [
        said.find(f"─ {panel} ─") for panel in Panel if panel not in (Panel.WORKERS, Panel.ENDPOINT)
    ]  # it has none
    assert all(place > 0 for place in panels)
    assert panels == sorted(panels)
    assert said.find("--dry-run") < said.find("--model") < said.find("─ Model ─")
    assert "[default: (no limit)]" in said
    assert "[default: 16]" in said  # the command's own, not the record's
    assert "IDEFICS_CLI_PASSWORD" in said


def test_a_password_comes_from_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes("pässword\r\nmore\n".encode())
    assert checked_pages(PageSettings(), tmp_path / "secret").password == "pässword"
    with pytest.raises(UsageError, match="No such file"):
        checked_pages(PageSettings(), tmp_path / "gone")
    with pytest.raises(UsageError, match="1-3,7,-1"):
        checked_pages(PageSettings("x"), None)

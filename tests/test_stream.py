from __future__ import annotations

import os

import pytest

from idefics_cli.errors import InputError
from idefics_cli.questions.stream import QuestionStream


def test_questions_are_there_before_the_stream_ends() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        stream = QuestionStream(source)
        assert not stream.ready()
        sink.write(b'{"question": "first"}\n')
        questions = iter(stream)
        assert next(questions).text == "first"
        assert not stream.ready()
        sink.write(b'{"question": "second"}\n')
        sink.close()
        assert [question.text for question in questions] == ["second"]
        assert stream.ready()


def test_a_table_that_is_none_ends_the_run() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as sink:
        sink.write(b"nothing,here\n1,2\n")
    with os.fdopen(reading, "rb") as source, pytest.raises(InputError, match="<stdin>:1: no column 'question'"):
        list(QuestionStream(source))

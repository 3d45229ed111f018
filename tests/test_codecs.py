"""Codecs: the parameters that are accepted, and how a codec is spelled."""

import pickle
import re

import pytest

from flowml import codecs
from flowml.edges import Edge
from flowml.errors import GraphError

CODECS = [
    (codecs.top_k(0.01), "top_k(0.01)"),
    (codecs.top_k(0.01, feedback=False), "top_k(0.01, feedback=False)"),
    (codecs.random_k(1), "random_k(1)"),
    (codecs.threshold(0.5), "threshold(0.5)"),
    (codecs.float16(), "float16()"),
    (codecs.float16(feedback=True), "float16(feedback=True)"),
    (codecs.bfloat16(), "bfloat16()"),
    (codecs.int8(), "int8()"),
    (codecs.sign(), "sign()"),
    (codecs.low_rank(4), "low_rank(4)"),
]

REFUSED = [
    (codecs.top_k, 0),
    (codecs.top_k, 1.01),
    (codecs.top_k, float("nan")),
    (codecs.top_k, "0.1"),
    (codecs.top_k, True),
    (codecs.random_k, -0.5),
    (codecs.threshold, 0),
    (codecs.threshold, float("inf")),
    (codecs.threshold, None),
    (codecs.low_rank, 0),
    (codecs.low_rank, 2.0),
    (codecs.low_rank, True),
]


@pytest.mark.parametrize(("codec", "text"), CODECS, ids=[text for _, text in CODECS])
def test_a_codec_is_spelled_as_the_call_that_makes_it_again(codec, text):
    assert str(codec) == text
    assert eval(f"codecs.{text}") == codec
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert Edge().compress(codec).codec is codec


@pytest.mark.parametrize(("make", "parameter"), REFUSED)
def test_a_parameter_that_means_nothing_is_refused(make, parameter):
    with pytest.raises(GraphError) as caught:
        make(parameter)
    message = str(caught.value)
    assert re.match(rf"test_codecs\.py:\d+: {make.__name__}\(", message)
    assert f"got {parameter!r}. For example" in message


def test_the_codecs_that_lose_most_keep_a_residual():
    kept = {str(codec).partition("(")[0] for codec, _ in CODECS[:1] + CODECS[2:] if codec.feedback}
    assert kept >= {"top_k", "random_k", "threshold", "sign", "low_rank"}
    assert not codecs.bfloat16().feedback


@pytest.mark.parametrize("dtype", ["float16", "int64", "complex64", ">f8"])
@pytest.mark.parametrize(("codec", "text"), CODECS, ids=[text for _, text in CODECS])
def test_a_dtype_that_no_codec_takes_is_refused_before_the_first_value(codec, text, dtype):
    with pytest.raises(GraphError, match=re.escape(f"{text}: a codec takes float32 or float64")):
        codec.init((3,), dtype, seed=0)

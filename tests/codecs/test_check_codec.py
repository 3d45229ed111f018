"""`check_codec` passes a codec of a user, and says what is broken in one that breaks a promise."""

import re
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from flowml.codecs import Codec
from flowml.edges import Edge
from flowml.testing import check_codec


@dataclass(frozen=True)
class Halving:
    """A codec of a user: whole numbers of a unit, with the rest kept."""

    unit: float = 0.25
    feedback: bool = True

    def init(self, shape, dtype, seed):
        return (np.zeros(shape, dtype),)

    def encode(self, values, state):
        total = np.asarray(values + state[0])
        counts = np.asarray(np.rint(total / self.unit))
        with np.errstate(invalid="ignore"):
            residual = np.asarray(total - self.decode((counts,), total.shape, total.dtype))
        return (counts,), (np.where(np.isfinite(total), residual, 0).astype(total.dtype),)

    def decode(self, payload, shape, dtype):
        return np.asarray(payload[0] * self.unit).astype(dtype)


class Forgetful(Halving):
    def encode(self, values, state):
        payload, _ = super().encode(values, state)
        return payload, (np.zeros_like(values),)


class Late(Halving):
    """Starts with something in the residual."""

    def init(self, shape, dtype, seed):
        return (np.ones(shape, dtype),)


class Stateless(Halving):
    def init(self, shape, dtype, seed):
        return ()


class Wider(Halving):
    def decode(self, payload, shape, dtype):
        return np.asarray(payload[0] * self.unit).astype(np.float64)


class Flat(Halving):
    feedback = False

    def decode(self, payload, shape, dtype):
        return super().decode(payload, shape, dtype).reshape(-1)


class Pickled(Halving):
    def encode(self, values, state):
        payload, state = super().encode(values, state)
        return (payload[0].astype(object),), state


class Listed(Halving):
    def encode(self, values, state):
        payload, state = super().encode(values, state)
        return list(payload), state


class Changing(Halving):
    def encode(self, values, state):
        values.flags.writeable = True
        values += 1
        return super().encode(values, state)


class Sharing(Halving):
    feedback = False

    def encode(self, values, state):
        return (values.reshape(-1),), state

    def decode(self, payload, shape, dtype):
        return payload[0].reshape(shape).copy()


class SharingBack(Halving):
    feedback = False

    def encode(self, values, state):
        return (values.flatten(),), state

    def decode(self, payload, shape, dtype):
        return payload[0].reshape(shape)


@dataclass(frozen=True)
class Counting(Halving):
    """Keeps state of its own."""

    calls: list = field(default_factory=list)

    def encode(self, values, state):
        self.calls.append(1)
        payload, state = super().encode(values, state)
        return (*payload, np.array([len(self.calls)])), state


class Drawing(Halving):
    def init(self, shape, dtype, seed):
        return (*super().init(shape, dtype, seed), np.random.random(1))

    def encode(self, values, state):
        payload, residual = super().encode(values, state)
        return payload, (*residual, state[1])


class Hiding(Halving):
    def encode(self, values, state):
        return super().encode(np.where(np.isfinite(values), values, 0), state)


class Poisoned(Halving):
    def encode(self, values, state):
        total = np.asarray(values + state[0])
        payload, _ = super().encode(values, state)
        decoded = self.decode(payload, total.shape, total.dtype)
        with np.errstate(invalid="ignore"):
            return payload, (np.asarray(total - decoded),)


class NoDecode:
    feedback = False

    def init(self, shape, dtype, seed):
        return ()

    def encode(self, values, state):
        return (values.copy(),), state


BROKEN = [
    (Forgetful, "step 0: what was decoded plus the residual must be what was put in"),
    (Late, "the first residual must be 0"),
    (
        Stateless,
        "state[0] must be the residual, of the shape and dtype of the values, got an empty",
    ),
    (Wider, "decode must return an array of the shape and dtype that was encoded, got ndarray, fl"),
    (Flat, "float32 of shape (1,)"),
    (Pickled, "the payload must hold numeric arrays, got object"),
    (Listed, "the payload must be a tuple of arrays, got list"),
    (Sharing, "what encode returns must not share memory with the values"),
    (SharingBack, "what decode returns must not share memory with the payload"),
    (Changing, "encode changed what it was given"),
    (Counting, "encode gave something else for the same arguments"),
    (Drawing, "init gives two states for one seed"),
    (Hiding, "nan in the last entry: the receiver must see it, and decoded only finite numbers"),
    (Poisoned, "nan in the last entry: the state must stay finite"),
    (lambda: Counting(calls=[threading.Lock()]), "a codec must be picklable, got cannot pickle"),
    (NoDecode, "a codec has feedback, init(shape, dtype, seed), encode(values, state) and decode("),
    (lambda: Halving, "a codec has feedback"),
    (lambda: Halving(feedback=1), "feedback must be a bool"),
]


def test_a_codec_of_the_user_passes_and_is_accepted_on_an_edge():
    check_codec(Halving())
    assert isinstance(Halving(), Codec)
    assert isinstance(Edge().compress(Halving()).codec, Halving)


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_a_broken_promise_is_named(make, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_codec(make())
